"""Each second of a chip is in one hour, for one use, once."""

import asyncio

import pytest
from sqlalchemy import select

from coserve.service.database import sqlite_url
from coserve.service.ledger.chips import ChipHours
from coserve.service.tables import ChipHourRow
from tests.service.ledger.stubs import THEN, Flaky, new_database

HOUR = THEN // 3600 * 3600


class Chip:
    """A chip's counters and a clock."""

    def __init__(self):
        self.uses = [0.0, 0.0, 0.0]
        self.now = float(HOUR)

    def counters(self):
        return tuple(self.uses)

    def work(self, *seconds: float) -> None:
        self.uses = [use + more for use, more in zip(self.uses, seconds, strict=True)]
        self.now += sum(seconds)


def hours(path, steps) -> list[tuple[float, ...]]:
    async def run():
        database, chip = Flaky(sqlite_url(new_database(path))), Chip()
        await steps(database, chip, lambda: ChipHours(database, "H100", chip.counters, 2_000, clock=lambda: chip.now))
        async with database.read() as session:
            rows = list(await session.scalars(select(ChipHourRow).order_by(ChipHourRow.hour)))
        await database.close()
        return [
            ((row.hour - HOUR) // 3600, row.inference_seconds, row.training_seconds, row.idle_seconds, row.price)
            for row in rows
        ]

    return asyncio.run(run())


def test_seconds_add_up_by_hour(tmp_path):
    async def steps(database, chip, make):
        one = make()
        await one.open()
        for seconds in ((1000, 500, 0), (0, 1500, 599), (10, 0, 0)):
            chip.work(*seconds)
            await one.record()
            await one.record()
        await one.close()

    assert hours(tmp_path, steps) == [(0, 1000, 2000, 599, 2000), (1, 10, 0, 0, 2000)]


def test_a_restarted_engine_begins_at_nothing(tmp_path):
    async def steps(database, chip, make):
        one = make()
        chip.work(100, 0, 0)
        await one.record()
        chip.uses = [3.0, 4.0, 5.0]
        await one.close()
        chip.uses = [1.0, 1.0, 1.0]
        await make().close()

    assert hours(tmp_path, steps) == [(0, 104, 5, 6, 2000)]


def test_hours_wait_for_the_database(tmp_path, caplog):
    async def steps(database, chip, make):
        one = make()
        database.away = True
        for _ in range(3):
            chip.work(1800, 0, 0)
            await one.record()
        database.away = False
        await one.close()

    assert hours(tmp_path, steps) == [(0, 1800, 0, 0, 2000), (1, 3600, 0, 0, 2000)]
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("price", [None, 0])
def test_an_unknown_price_is_nothing(tmp_path, price):
    async def run():
        database = Flaky(sqlite_url(new_database(tmp_path)))
        await ChipHours(database, "cpu", lambda: (1, 2, 3), price, clock=lambda: THEN).close()
        async with database.read() as session:
            row = await session.scalar(select(ChipHourRow))
        await database.close()
        return row.price

    assert asyncio.run(run()) == 0
