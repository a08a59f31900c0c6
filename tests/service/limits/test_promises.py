"""What each of the three stores promises, one at a time."""

import asyncio
import math

import pytest

from coserve.service.limits import Draw, Level, Limit, Refusal
from tests.service.limits.stores import opened, with_store

TOKENS = Limit("tokens", 100, 1e9)  # in a test's time nothing flows back
REQUESTS = Limit("requests", 3, 1e9)
BUDGET = Limit("budget-2026-11", 10, math.inf)


def remaining(levels):
    return [round(level.remaining, 3) for level in levels]


def test_a_new_bucket_is_full(url):
    async def promise(store):
        assert await store.levels([TOKENS, BUDGET]) == [Level(TOKENS, 100, 0), Level(BUDGET, 10, 0)]

    with_store(url, promise)


def test_no_draws_are_granted(url):
    async def promise(store):
        assert await store.reserve([]) == [] and await store.settle([]) == [] and await store.levels([]) == []

    with_store(url, promise)


def test_reserving_takes_from_all_in_the_draws_order(url):
    async def promise(store):
        assert remaining(await store.reserve([Draw(TOKENS, 30), Draw(REQUESTS, 1)])) == [70, 2]
        assert remaining(await store.reserve([Draw(REQUESTS, 1), Draw(TOKENS, 0.5)])) == [1, 69.5]
        [tokens] = await store.levels([TOKENS])
        assert tokens.reset == pytest.approx(30.5 * 1e7, rel=1e-6)

    with_store(url, promise)


def test_a_refusal_takes_nothing_and_names_what_is_short_the_longest(url):
    async def promise(store):
        await store.reserve([Draw(TOKENS, 90), Draw(REQUESTS, 3)])
        answer = await store.reserve([Draw(BUDGET, 1), Draw(TOKENS, 20), Draw(REQUESTS, 1)])
        assert isinstance(answer, Refusal)
        assert answer.draw == Draw(REQUESTS, 1)  # a third of the period; the tokens a tenth
        assert answer.remaining == pytest.approx(0, abs=1e-3)
        assert answer.retry_after == pytest.approx(1e9 / 3, rel=1e-6)
        assert remaining(await store.levels([TOKENS, REQUESTS, BUDGET])) == [10, 0, 10]

    with_store(url, promise)


def test_what_can_never_be_granted_says_so(url):
    async def promise(store):
        assert (await store.reserve([Draw(TOKENS, 101)])).retry_after == math.inf
        await store.reserve([Draw(BUDGET, 10)])
        assert (await store.reserve([Draw(BUDGET, 1), Draw(TOKENS, 101)])).retry_after == math.inf
        assert (await store.levels([BUDGET])) == [Level(BUDGET, 0, math.inf)]
        assert (await store.reserve([Draw(Limit("none", 0, 60), 1)])).retry_after == math.inf

    with_store(url, promise)


def test_draws_with_one_key_count_together(url):
    async def promise(store):
        assert remaining(await store.reserve([Draw(TOKENS, 30), Draw(TOKENS, 30)])) == [40, 40]
        assert (await store.reserve([Draw(TOKENS, 30), Draw(TOKENS, 30)])).draw == Draw(TOKENS, 60)
        with pytest.raises(ValueError, match="two limits with one key"):
            await store.reserve([Draw(TOKENS, 1), Draw(Limit("tokens", 5, 60), 1)])

    with_store(url, promise)


def test_settling_gives_back_but_never_above_the_capacity(url):
    async def promise(store):
        await store.reserve([Draw(TOKENS, 50)])
        assert remaining(await store.settle([Draw(TOKENS, -20)])) == [70]
        assert await store.settle([Draw(TOKENS, -1000)]) == [Level(TOKENS, 100, 0)]

    with_store(url, promise)


def test_settling_takes_more_even_into_debt_which_refuses_the_next(url):
    async def promise(store):
        await store.reserve([Draw(BUDGET, 10)])
        assert remaining(await store.settle([Draw(BUDGET, 2.5)])) == [-2.5]
        assert (await store.reserve([Draw(BUDGET, 0)])).remaining == -2.5
        assert remaining(await store.settle([Draw(BUDGET, -4)])) == [1.5]

    with_store(url, promise)


def test_a_bucket_refills_and_a_refusal_says_when(url):
    async def promise(store):
        quick = Limit("quick", 100, 0.5)
        await store.reserve([Draw(quick, 100)])
        refusal = await store.reserve([Draw(quick, 90)])
        assert isinstance(refusal, Refusal) and 0 < refusal.retry_after <= 0.45 * 1.001
        await asyncio.sleep(refusal.retry_after + 0.01)  # our clock may not be the server's
        assert isinstance(await store.reserve([Draw(quick, 90)]), list)
        await asyncio.sleep(0.55)
        assert await store.levels([quick]) == [Level(quick, 100, 0)]

    with_store(url, promise)


def test_a_limit_that_is_changed_holds_at_once(url):
    async def promise(store):
        await store.reserve([Draw(BUDGET, 10)])
        raised, lowered = Limit(BUDGET.key, 25, math.inf), Limit(BUDGET.key, 4, math.inf)
        assert remaining(await store.levels([raised])) == [15]
        assert remaining(await store.levels([lowered])) == [-6]

    with_store(url, promise)


def test_preset_starts_only_what_is_unknown(url):
    async def promise(store):
        await store.preset(BUDGET, 4)
        await store.preset(BUDGET, 9)
        assert remaining(await store.levels([BUDGET])) == [6]
        await store.reserve([Draw(TOKENS, 10)])
        await store.preset(TOKENS, 90)
        assert remaining(await store.levels([TOKENS])) == [90]

    with_store(url, promise)


def test_leases_hold_no_more_than_the_capacity(url):
    async def promise(store):
        assert await store.acquire("slots", 2, "a", 60)
        assert await store.acquire("slots", 2, "b", 60)
        assert not await store.acquire("slots", 2, "c", 60)
        assert await store.acquire("others", 2, "c", 60)
        assert await store.acquire("slots", 2, "b", 60)  # it is held already
        await store.release("slots", "a")
        await store.release("slots", "a")
        await store.release("slots", "unknown")
        assert await store.acquire("slots", 2, "c", 60)
        assert not await store.acquire("slots", 2, "a", 60)

    with_store(url, promise)


def test_leases_end_by_themselves_unless_they_are_renewed(url):
    async def promise(store):
        assert await store.acquire("slots", 2, "killed", 0.3)
        assert await store.acquire("slots", 2, "alive", 0.3)
        assert await store.renew("slots", "alive", 60)
        await asyncio.sleep(0.35)
        assert not await store.renew("slots", "killed", 60)
        assert await store.acquire("slots", 2, "next", 60)
        assert not await store.acquire("slots", 2, "another", 60)

    with_store(url, promise)


def test_two_processes_count_together(server):
    async def run():
        _, url = server
        async with opened(url) as one, opened(url) as other:
            await one.reserve([Draw(BUDGET, 6)])
            assert isinstance(await other.reserve([Draw(BUDGET, 6)]), Refusal)
            assert await one.acquire("slots", 1, "a", 60)
            assert not await other.acquire("slots", 1, "b", 60)

    asyncio.run(run())


@pytest.mark.parametrize(("capacity", "period"), [(-1, 1), (math.inf, 1), (math.nan, 1), (1, 0), (1, math.nan)])
def test_limits_that_make_no_sense_are_refused(capacity, period):
    with pytest.raises(ValueError, match="a limit needs"):
        Limit("x", capacity, period)


@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf])
def test_amounts_that_would_spoil_a_bucket_are_refused(amount):
    with pytest.raises(ValueError, match="finite"):
        Draw(TOKENS, amount)
