"""What the chip's hours went to: inference, training, nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from coserve.service.database import Database
from coserve.service.ledger.dialect import insert
from coserve.service.ledger.seldom import Seldom
from coserve.service.tables import ChipHourRow

log = logging.getLogger("coserve.service.ledger")

HOUR = 3600  # seconds
SAMPLE_SECONDS = 10.0


class Uses(NamedTuple):
    """Seconds of a chip."""

    inference: float
    training: float
    idle: float

    def since(self, earlier: Uses) -> Uses:
        """What came on top; all of it if the counters began anew."""
        before = earlier if all(now >= then for now, then in zip(self, earlier, strict=True)) else NO_USE
        return Uses(*(now - then for now, then in zip(self, before, strict=True)))

    def plus(self, other: Uses) -> Uses:
        return Uses(*(one + more for one, more in zip(self, other, strict=True)))


NO_USE = Uses(0.0, 0.0, 0.0)


class ChipHours:
    """Adds to each hour's row of a chip what its counters say, every 10 s.

    `counters()` gives the seconds since its start for inference, training and nothing; `price` is in nano-dollars an
    hour, None if nobody knows. While the database is away the hours wait in memory.
    """

    def __init__(
        self,
        database: Database,
        chip: str,
        counters: Callable[[], tuple[float, float, float]],
        price: int | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ):
        self._database = database
        self._chip = chip
        self._counters = counters
        self._price = price or 0
        self._clock = clock
        self._seen = NO_USE
        self._waiting: dict[int, Uses] = {}  # by hour
        self._task: asyncio.Task[None] | None = None
        self._busy = asyncio.Lock()
        self._away = Seldom(log, logging.WARNING)

    async def open(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """With a last look at the counters."""
        if self._task is not None:
            async with self._busy:  # never in the middle of a transaction
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.record()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            await self.record()

    async def record(self) -> None:
        """Read the counters and write what is new."""
        async with self._busy:
            try:
                self._sample()
                while self._waiting:
                    hour = min(self._waiting)
                    await self._add(hour, self._waiting[hour])
                    del self._waiting[hour]
            except Exception as error:  # the next look tries again
                self._away.say("the chip's hours cannot be written (%s)", type(error).__name__)

    def _sample(self) -> None:
        now = Uses(*self._counters())
        hour = int(self._clock()) // HOUR * HOUR
        self._waiting[hour] = self._waiting.get(hour, NO_USE).plus(now.since(self._seen))
        self._seen = now

    async def _add(self, hour: int, uses: Uses) -> None:
        table = ChipHourRow.__table__
        seconds = {f"{use}_seconds": value for use, value in uses._asdict().items()}
        async with self._database.write() as session:
            statement = insert(session, table).values(hour=hour, chip=self._chip, price=self._price, **seconds)
            more = {name: table.c[name] + statement.excluded[name] for name in seconds}
            await session.execute(
                statement.on_conflict_do_update(
                    index_elements=["hour", "chip"], set_={**more, "price": statement.excluded.price}
                )
            )
