"""Reading the bill, and summing old rows of it: nothing appears, nothing is lost, nothing counts twice."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import astuple, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from coserve.errors import InvalidRequest
from coserve.service.database import Database, sqlite_url
from coserve.service.ledger import Ledger
from coserve.service.ledger.days import DAY
from coserve.service.ledger.rollup import roll_up
from coserve.service.ledger.totals import FAR, Totals, spent, totals
from coserve.service.tables import ChipHourRow, UsageDayRow, UsageRow
from tests.service.ledger.stubs import RATES, THEN, bill, entry, new_database

TODAY = THEN // DAY * DAY


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return sqlite_url(new_database(tmp_path))
    return request.getfixturevalue("postgres_url")


@asynccontextmanager
async def using(url, folder, entries=()):
    """A database with nothing but these entries on the bill, and their ledger."""
    database = Database(url)
    await database.open()
    async with database.write() as session:
        for table in (UsageRow, UsageDayRow, ChipHourRow):
            await session.execute(delete(table))
    ledger = Ledger(database, folder / "ledger", clock=lambda: 0)
    await ledger.open()
    try:
        for one in entries:
            ledger.write(one.billed(RATES))
        assert await ledger.flush()
        yield database, ledger
    finally:
        await ledger.close()
        await database.close()


ENTRIES = [
    entry("1", created_at=TODAY, prompt_tokens=10, completion_tokens=1, tier="free"),
    entry("2", created_at=TODAY + 59, prompt_tokens=20, cached_tokens=5, completion_tokens=2, adapter="ft:x"),
    entry("3", created_at=TODAY + 3600, prompt_tokens=40, completion_tokens=4, project_id="proj-b"),
    entry("4", created_at=TODAY + DAY, prompt_tokens=80, completion_tokens=8, project_id="proj-b"),
    entry("job:1", created_at=TODAY + DAY, prompt_tokens=0, trained_tokens=1000, endpoint="fine_tuning"),
]


def read(url, folder, *args, **options) -> list[Totals]:
    async def run():
        async with using(url, folder, ENTRIES) as (database, _), database.read() as session:
            return await totals(session, *args, **options)

    return asyncio.run(run())


def test_one_total(url, tmp_path):
    [whole] = read(url, tmp_path, 0, FAR)
    assert (whole.requests, whole.prompt_tokens, whole.cached_tokens) == (4, 150, 5)
    assert (whole.completion_tokens, whole.trained_tokens) == (15, 1000)
    assert whole.cost == sum(one.billed(RATES).cost for one in ENTRIES)


def test_buckets_and_the_ends_of_time(url, tmp_path):
    minutes = read(url, tmp_path, TODAY, TODAY + DAY, width="minute")
    assert [(one.start - TODAY, one.prompt_tokens) for one in minutes] == [(0, 30), (3600, 40)]
    days = read(url, tmp_path, TODAY + 1, TODAY + DAY + 1, width="day")
    assert [(one.start - TODAY, one.prompt_tokens) for one in days] == [(0, 60), (DAY, 80)]
    assert read(url, tmp_path, 0, TODAY) == []


def test_groups_and_filters(url, tmp_path):
    found = read(url, tmp_path, 0, FAR, group_by=("project_id", "adapter"))
    assert [(one.group["project_id"], one.group["adapter"], one.prompt_tokens) for one in found] == [
        ("proj-a", None, 10),
        ("proj-a", "ft:x", 20),
        ("proj-b", None, 120),
    ]
    assert [one.prompt_tokens for one in read(url, tmp_path, 0, FAR, tier=["free", "gold"])] == [10]
    assert [one.prompt_tokens for one in read(url, tmp_path, 0, FAR, adapter=None, project_id="proj-a")] == [10]


def test_an_unknown_group_is_refused(url, tmp_path):
    with pytest.raises(InvalidRequest, match="project_id"):
        read(url, tmp_path, 0, FAR, group_by=("user",))


def test_what_a_project_has_spent(url, tmp_path):
    async def run():
        async with using(url, tmp_path, ENTRIES) as (database, _), database.read() as session:
            return [await spent(session, "proj-b", since) for since in (0, TODAY + DAY)] + [
                await spent(session, "nobody", 0)
            ]

    assert [astuple(one)[:3] for one in asyncio.run(run())] == [(2, 132, 0), (1, 88, 0), (0, 0, 0)]


OLD = st.builds(
    lambda day, second, tokens, tier, adapter, trained: entry(
        created_at=TODAY - day * DAY + second,
        prompt_tokens=tokens,
        completion_tokens=tokens // 2,
        tier=tier,
        adapter=adapter,
        trained_tokens=trained,
    ),
    st.integers(60, 65),
    st.integers(0, DAY - 1),
    st.integers(0, 10**12),
    st.sampled_from(["free", "gold"]),
    st.sampled_from([None, "", "ft:x", "x" * 600, "x" * 601]),
    st.sampled_from([0, 7]),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(OLD, max_size=8), min_size=1, max_size=3))
def test_rolling_up_changes_no_total(url, tmp_path, batches):
    async def sums(database, **options):
        async with database.read() as session:
            return await totals(session, 0, FAR, **options)

    async def run():
        async with using(url, tmp_path) as (database, ledger):
            for number, batch in enumerate(batches):
                for index, one in enumerate(batch):
                    ledger.write(replace(one, id=f"{number}-{index}").billed(RATES))
                await ledger.flush()
                grouped = {"width": "day", "group_by": ("tier", "adapter")}
                before = await sums(database), await sums(database, **grouped)
                gone = await roll_up(database, THEN)
                assert (await sums(database), await sums(database, **grouped)) == before
                assert await roll_up(database, THEN) == 0
                rows = await bill(database)
                assert gone == sum(one.created_at < TODAY - 62 * DAY for one in batch)
                assert all(row.created_at >= TODAY - 62 * DAY for row in rows.values())

    asyncio.run(run())


def test_rows_that_come_while_others_are_summed_are_kept(url, tmp_path):
    """Late ones of the same old day: each is summed by one of the two who roll up, or stays."""
    late = [entry(f"{number}", created_at=TODAY - 100 * DAY + number, prompt_tokens=1) for number in range(400)]

    async def run():
        async with using(url, tmp_path) as (database, ledger):
            other = Database(url)
            for number, one in enumerate(late):
                ledger.write(one)
                if not number % 40:
                    await asyncio.gather(ledger.flush(), roll_up(database, THEN), roll_up(other, THEN))
            await ledger.flush()
            await roll_up(other, THEN)
            async with other.read() as session:
                [whole] = await totals(session, 0, FAR)
                days = await session.scalar(select(func.count()).select_from(UsageDayRow))
            await other.close()
            return whole, days

    whole, days = asyncio.run(run())
    assert (whole.requests, whole.prompt_tokens, days) == (400, 400, 1)
