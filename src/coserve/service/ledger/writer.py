"""From the backlog into the database, in batches; for as long as the database is away, nothing is lost but time."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from coserve.service.database import Database, reason
from coserve.service.ledger.backlog import Backlog
from coserve.service.ledger.dialect import insert
from coserve.service.ledger.entry import Entry
from coserve.service.ledger.rejected import Rejected
from coserve.service.ledger.seldom import Seldom
from coserve.service.tables import UsageRow

log = logging.getLogger("coserve.service.ledger")

PAUSE_SECONDS = 0.2  # between two batches, so that one holds many entries
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 2.0


class Writer:
    def __init__(self, database: Database, backlog: Backlog, rejected: Rejected, chunk: int):
        self._database = database
        self._backlog = backlog
        self._rejected = rejected
        self._chunk = chunk  # rows of a transaction
        self._news = asyncio.Event()
        self.busy = asyncio.Lock()  # held while it writes: who stops it waits for that
        self._is_away = False
        self._away = Seldom(log, logging.WARNING)

    def wake(self) -> None:
        """There is something in the backlog."""
        self._news.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._news.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            self._news.clear()
            pause = FIRST_RETRY_SECONDS
            while not await self.drain():
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_RETRY_SECONDS)

    async def drain(self) -> bool:
        """Write all of the backlog; False if the database could not take it."""
        async with self.busy:
            try:
                while not self._backlog.empty:
                    for entry, why in await self._insert(self._backlog.take(self._chunk)):
                        self._rejected.put(entry.as_json(), why)
                    self._backlog.done()
            except Exception as error:  # whatever it is, the entries are kept and the writer must go on
                await self._gone(error)
                return False
        if self._is_away:
            log.warning("the ledger's database is back: the bill is complete")
            self._is_away = False
            self._away.reset()
        return True

    async def _gone(self, error: Exception) -> None:
        self._is_away = True
        why = reason(error)
        self._away.say("the bill cannot be written (%s: %s); it waits on disk", type(why).__name__, why)
        self._backlog.save()
        try:
            await asyncio.to_thread(self._backlog.sync)
        except OSError as failed:
            log.error("the waiting bill cannot be synced to disk: %s", failed.strerror)

    async def _insert(self, entries: list[Entry]) -> list[tuple[Entry, Exception]]:
        """In one transaction. Returns the rows that no database would take, which halving finds."""
        if not entries:
            return []
        try:
            async with self._database.write() as session:
                statement = insert(session, UsageRow.__table__).on_conflict_do_nothing(index_elements=["id"])
                await session.execute(statement, [entry.as_row() for entry in entries])
        except Exception as error:
            if not _is_the_rows_fault(error):
                raise
            if len(entries) == 1:
                return [(entries[0], error)]
            middle = len(entries) // 2
            return await self._insert(entries[:middle]) + await self._insert(entries[middle:])
        return []


def _is_the_rows_fault(error: Exception) -> bool:
    """A text too long, a number too large: it would fail for ever. Anything else may pass."""
    if isinstance(error, DataError | IntegrityError | OverflowError):
        return True
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return str(state or "")[:2] in ("22", "23")  # data exceptions, violated constraints
