"""A token that was delivered is on the bill once; one that was not is not."""

import asyncio
import errno
import logging
import os
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.service.ledger import Entry, Ledger, Rates
from coserve.service.ledger.entry import INTERRUPTED
from coserve.service.money import cost
from coserve.service.tiers import Price
from tests.service.ledger.stubs import RATES, bill, entry, opened

TOKENS = st.integers(0, 10**9)


def test_what_was_delivered_is_billed(tmp_path):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            line = ledger.begin(entry(adapter="ft:base:x"), RATES)
            for count in range(1, 41):
                line.delivered(count)
            line.close("completed", generated_tokens=45, cached_tokens=60, ttft_ms=12.5, latency_ms=300.0)
            assert await ledger.flush()
            return await bill(database)

    row = asyncio.run(run())["chatcmpl-1"]
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.generated_tokens) == (100, 60, 40, 45)
    assert (row.outcome, row.ttft_ms, row.latency_ms, row.adapter) == ("completed", 12.5, 300.0, "ft:base:x")
    assert row.cost == 40 * 150 + 60 * 75 + 40 * 600


@pytest.mark.parametrize("outcome", ["failed", "disconnected", "completed"])
def test_without_anything_delivered_the_prompt_is_free(tmp_path, outcome):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            ledger.begin(entry("nothing"), RATES).close(outcome, generated_tokens=7, cached_tokens=50)
            empty = ledger.begin(entry("empty answer"), RATES)
            empty.delivered(0)
            empty.close(outcome)
            await ledger.flush()
            return await bill(database)

    rows = asyncio.run(run())
    nothing = rows["nothing"]
    assert (nothing.cost, nothing.prompt_tokens, nothing.cached_tokens, nothing.generated_tokens) == (0, 0, 0, 7)
    assert rows["empty answer"].cost == 100 * 150


def test_only_the_first_close_counts_and_what_comes_later_harms_no_other_line(tmp_path):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            first = ledger.begin(entry("first"), RATES)
            first.delivered(3)
            first.close("disconnected")
            second = ledger.begin(entry("second"), RATES)  # in the same slot
            second.delivered(5)
            first.delivered(1000)
            first.cached(1000)
            first.close("completed", cached_tokens=1)
            second.close("completed")
            await ledger.flush()
            return await bill(database)

    rows = asyncio.run(run())
    assert (rows["first"].completion_tokens, rows["first"].outcome) == (3, "disconnected")
    assert (rows["second"].completion_tokens, rows["second"].cached_tokens) == (5, 0)


def test_the_same_id_twice_counts_once(tmp_path):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            for tokens in (500, 999):
                ledger.write(entry("job-1:7", prompt_tokens=0, trained_tokens=tokens).billed(RATES))
            await ledger.flush()
            ledger.write(entry("job-1:7", prompt_tokens=0, trained_tokens=1).billed(RATES))
            await ledger.flush()
            return await bill(database)

    [row] = asyncio.run(run()).values()
    assert (row.trained_tokens, row.cost) == (500, 500 * 3000)


def test_the_writer_writes_by_itself(tmp_path):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            ledger.write(entry())
            for _ in range(200):
                if found := await bill(database):
                    return found
                await asyncio.sleep(0.02)

    assert asyncio.run(run())


def test_a_line_that_is_open_at_the_end_is_interrupted(tmp_path):
    async def run():
        async with opened(tmp_path) as (_, ledger):
            line = ledger.begin(entry(), RATES)
            line.delivered(4)
        line.delivered(5)  # the ledger is closed: nothing happens
        line.close("completed")
        async with opened(tmp_path) as (database, _):
            return await bill(database)

    [row] = asyncio.run(run()).values()
    assert (row.outcome, row.completion_tokens, row.cost) == (INTERRUPTED, 4, 100 * 150 + 4 * 600)


def test_while_the_database_is_away_entries_wait_on_disk(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "coserve.service.ledger")

    async def run():
        async with opened(tmp_path) as (database, ledger):
            database.away = True
            for number in range(3000):
                ledger.write(entry(f"{number}"))
                if not number % 1000:
                    assert not await ledger.flush()
            assert not ledger._backlog._stuck, "memory holds no entries"
            assert sum(path.stat().st_size for path in (tmp_path / "ledger").glob("spool-*")) > 500_000
            database.away = False
            assert await ledger.flush()
            assert [path.stat().st_size for path in (tmp_path / "ledger").glob("spool-*")] == [0]
            return await bill(database)

    assert len(asyncio.run(run())) == 3000
    messages = [record.getMessage() for record in caplog.records if "summed by day" not in record.getMessage()]
    assert len(messages) == 2, messages
    assert "waits on disk" in messages[0]
    assert "is back" in messages[1]


def test_what_waits_survives_a_restart(tmp_path):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            database.away = True
            ledger.write(entry())
        async with opened(tmp_path) as (database, _):
            return await bill(database)

    assert len(asyncio.run(run())) == 1


def test_a_row_that_no_database_takes_stops_no_other(tmp_path, caplog):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            for number in range(20):
                ledger.write(entry(f"{number}", trained_tokens=1 << 80 if number == 7 else 0))
            assert await ledger.flush()
            return await bill(database)

    assert len(asyncio.run(run())) == 19
    kept = (tmp_path / "ledger" / "rejected.jsonl").read_bytes()
    assert Entry.from_json(kept).id == "7"
    assert "cannot be recorded" in caplog.text


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_nobody(tmp_path, monkeypatch, caplog):
    """The meter cannot grow, the spool cannot be written: the bill goes straight to the database."""

    async def run():
        async with opened(tmp_path) as (database, ledger):
            monkeypatch.setattr(os, "pwrite", lambda *_: 0)
            monkeypatch.setattr(os, "write", full)
            lines = [ledger.begin(entry(f"{number}"), RATES) for number in range(2000)]
            for line in lines:
                line.delivered(2)
                line.close("completed")
            assert await ledger.flush()
            return await bill(database)

    rows = asyncio.run(run())
    assert len(rows) == 2000
    assert {row.completion_tokens for row in rows.values()} == {2}
    assert "cannot be kept on disk" in caplog.text
    assert "not protected against a kill" in caplog.text


def test_a_full_disk_without_a_database_loses_nothing_to_a_kill(tmp_path, monkeypatch):
    async def killed():
        async with opened(tmp_path) as (database, ledger):
            database.away = True
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                for number in range(100):
                    line = ledger.begin(entry(f"{number}"), RATES)
                    line.delivered(number + 1)
                    line.close("completed")
                assert not await ledger.flush()
                raise KeyboardInterrupt

    async def run():
        async with opened(tmp_path) as (database, _):
            return await bill(database)

    monkeypatch.setattr(Ledger, "close", no_close)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(killed())
    monkeypatch.undo()
    rows = asyncio.run(run())
    assert sorted(row.completion_tokens for row in rows.values()) == list(range(1, 101))


async def no_close(_: object) -> None:
    """Killed."""


def test_short_writes_leave_no_torn_line(tmp_path, monkeypatch):
    write = os.write

    async def run():
        async with opened(tmp_path) as (database, ledger):
            ledger.write(entry("before"))
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", lambda file, data: write(file, data[:40]))
                ledger.write(entry("short"))
            ledger.write(entry("after"))
            await ledger.flush()
            return await bill(database)

    assert set(asyncio.run(run())) == {"before", "short", "after"}


@given(prompt=TOKENS, cached=TOKENS, delivered=st.none() | TOKENS, generated=TOKENS)
def test_the_cost_is_that_of_the_tokens(prompt, cached, delivered, generated):
    begun = entry(prompt_tokens=prompt)
    row = begun.settled(RATES, delivered, cached, "completed", generated_tokens=generated)
    assert row.cached_tokens <= row.prompt_tokens <= prompt
    assert row.generated_tokens >= row.completion_tokens == (delivered or 0)
    assert row.cost == (
        cost(row.prompt_tokens - row.cached_tokens, RATES.input)
        + cost(row.cached_tokens, RATES.cached_input)
        + cost(row.completion_tokens, RATES.output)
    )
    assert Entry.from_json(row.as_json()) == row


def test_a_tiers_price_becomes_rates():
    assert Rates.of(Price(input=Decimal(2), output=Decimal(3))) == Rates(Decimal(2), Decimal(2), Decimal(3))
    free = Rates.of(Price(input=Decimal(2), cached_input=Decimal(0)), Decimal(9))
    assert free == Rates(Decimal(2), Decimal(0), Decimal(0), Decimal(9))
