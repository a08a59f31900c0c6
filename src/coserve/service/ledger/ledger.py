"""The ledger: lines in flight, finished entries, and the tasks that bring them into the database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from coserve.service.database import Database
from coserve.service.ledger.backlog import Backlog
from coserve.service.ledger.entry import COMPLETED, INTERRUPTED, Entry, Rates
from coserve.service.ledger.line import Line
from coserve.service.ledger.meter import Meter, Slot, memory_slot
from coserve.service.ledger.rejected import Rejected
from coserve.service.ledger.rollup import KEEP_DAYS, roll_up
from coserve.service.ledger.spool import Spool
from coserve.service.ledger.writer import Writer

log = logging.getLogger("coserve.service.ledger")

CHUNK = 500
HOUR = 3600.0


class Ledger:
    """The bill of one home directory. Everything is called on the loop's thread.

    `directory` is the ledger's own; `chunk` the rows of a transaction; rows older than `keep_days` are summed by
    day; `clock` gives seconds since 1970.
    """

    _meter: Meter
    _spool: Spool
    _backlog: Backlog
    _writer: Writer

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        chunk: int = CHUNK,
        keep_days: int = KEEP_DAYS,
        clock: Callable[[], float] = time.time,
    ):
        self._database = database
        self._directory = directory
        self._chunk = chunk
        self._keep_days = keep_days
        self._clock = clock
        self._lines: set[Line] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._rolling_up = asyncio.Lock()

    async def open(self) -> None:
        """Recover what an earlier process left, write it, and go on writing. Raises `OSError` for the directory."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        rejected = Rejected(self._directory / "rejected.jsonl")
        self._spool = Spool(self._directory, rejected)
        self._meter = Meter(self._directory / "meter")
        self._backlog = Backlog(self._spool, self._meter, rejected)
        self._writer = Writer(self._database, self._backlog, rejected, self._chunk)
        for entry, slot in self._meter.recover():
            self._backlog.put(entry, slot)
        await self._writer.drain()
        self._writer.wake()
        self._tasks = [asyncio.create_task(self._writer.run()), asyncio.create_task(self._roll_up_hourly())]

    async def close(self) -> None:
        """End the lines that are still open as interrupted, and write all; what cannot be written stays on disk."""
        for line in list(self._lines):
            line.close(INTERRUPTED)
        async with self._writer.busy, self._rolling_up:  # never in the middle of a transaction
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not await self._writer.drain():
            log.warning("the bill is not complete in the database: the next start on this home will complete it")
        self._meter.close()
        self._spool.close()

    def begin(self, entry: Entry, rates: Rates) -> Line:
        """A request begins: `entry` says all that is known, with the tokens of its prompt.

        A batch's request is on the bill once it is done: until then it may be run again, under the same id.
        """
        if entry.batch_id is not None:
            return Line(entry, rates, memory_slot(), self._end_of_batch_request)
        line = Line(entry, rates, self._meter.begin(entry, rates), self._end)
        self._lines.add(line)
        return line

    def _end(self, line: Line, entry: Entry, slot: Slot) -> None:
        self._lines.discard(line)
        self._backlog.put(entry, slot)
        self._writer.wake()

    def _end_of_batch_request(self, _: Line, entry: Entry, slot: Slot) -> None:
        if entry.outcome == COMPLETED:
            self._backlog.put(entry, slot)
            self._writer.wake()

    def write(self, entry: Entry) -> None:
        """What has no flight, with its cost (`entry.billed(rates)`). The same id again, within the days that rows
        are kept, changes nothing."""
        self._backlog.put(entry)
        self._writer.wake()

    async def flush(self) -> bool:
        """Write all that is finished, now. False if the database is away: then it waits on disk."""
        return await self._writer.drain()

    async def _roll_up_hourly(self) -> None:
        while True:
            try:
                async with self._rolling_up:
                    await roll_up(self._database, self._clock(), self._keep_days)
            except Exception as error:  # the next hour tries again
                log.warning("old usage could not be summed by day (%s)", type(error).__name__)
            await asyncio.sleep(HOUR)
