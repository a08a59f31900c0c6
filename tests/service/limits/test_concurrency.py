"""Many at once, some of whom leave: never more than the limit, and nothing is lost."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest

from coserve.service.limits import Draw, Limit
from tests.service.limits.stores import opened

CLIENTS = 200


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine may be slow; it is the count that matters here."""
    for module in ("shared", "redis", "postgres"):
        monkeypatch.setattr(f"coserve.service.limits.{module}.PATIENCE", 60)


async def crowd(client, seed=0):
    """All clients at once; a third of them are cancelled somewhere on their way."""
    random = Random(seed)
    tasks = [asyncio.create_task(client(Random(i), i)) for i in range(CLIENTS)]
    for task in random.sample(tasks, CLIENTS // 3):
        await asyncio.sleep(random.choice((0, 0, random.random() * 0.008)))  # 0: in the midst of its first call
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def ended(store):
    """What cancelled clients left behind goes on in the background for a moment."""
    while getattr(store, "_running", None):
        await asyncio.sleep(0.01)


def test_663_tokens_do_not_pass_through_a_limit_of_100(url):
    """Each asks for up to 20 at the same moment, from two processes."""
    limit = Limit("tokens", 100, math.inf)

    async def run():
        async with opened(url) as one, opened(url) as other:
            stores = [one, other if url else one]
            amounts = [Random(i).randint(1, 20) for i in range(CLIENTS)]
            calls = [stores[i % 2].reserve([Draw(limit, amount)]) for i, amount in enumerate(amounts)]
            answers = await asyncio.gather(*calls)
            granted = sum(amount for amount, a in zip(amounts, answers, strict=True) if isinstance(a, list))
            assert 80 < granted <= 100
            assert (await one.levels([limit]))[0].remaining == 100 - granted

    asyncio.run(run())


def test_whoever_leaves_and_whenever_the_level_is_what_was_really_used(url):
    tokens, budget = Limit("tokens", 1000, math.inf), Limit("budget", 5000, math.inf)
    held = used = 0

    async def run():
        nonlocal held
        async with opened(url) as one:
            async with opened(url) as other:
                stores = [one, other if url else one]

                async def client(random, i):
                    nonlocal held, used
                    store = stores[i % 2]
                    for _ in range(3):
                        estimate = random.randint(1, 40)
                        actual = random.randint(0, estimate)
                        answer = await store.reserve([Draw(tokens, estimate), Draw(budget, estimate)])
                        if not isinstance(answer, list):
                            continue
                        held += estimate
                        assert held <= tokens.capacity
                        try:
                            await asyncio.sleep(random.random() * 0.01)
                        finally:
                            held += actual - estimate
                            used += actual
                            difference = actual - estimate
                            await store.settle([Draw(budget, difference), Draw(tokens, difference)])

                await crowd(client)
            await ended(one)
            levels = await one.levels([tokens, budget])
            assert [level.remaining for level in levels] == [1000 - used, 5000 - used]
            assert used > 500

    asyncio.run(run())


def test_estimates_that_are_too_low_exceed_a_limit_by_one_request_at_most(url):
    """One request at a time: the debt of the last refuses the next."""
    limit = Limit("tokens", 100, math.inf)

    async def run():
        async with opened(url) as store:
            turn, used, random = asyncio.Lock(), 0, Random(1)

            async def client():
                nonlocal used
                async with turn:
                    if isinstance(await store.reserve([Draw(limit, 5)]), list):
                        error = random.randint(0, 15)
                        await store.settle([Draw(limit, error)])
                        used += 5 + error

            await asyncio.gather(*(client() for _ in range(30)))
            assert 100 - 5 < used <= 100 + 15
            assert (await store.levels([limit]))[0].remaining == 100 - used

    asyncio.run(run())


def test_of_several_who_want_the_last_place_at_once_one_gets_it(url):
    async def run():
        async with opened(url) as one, opened(url) as other:
            stores = [one, other if url else one]
            places = [f"slots-{i}" for i in range(100)]
            calls = [stores[i % 2].acquire(place, 1, str(i), 60) for place in places for i in range(4)]
            answers = await asyncio.gather(*calls)
            assert [sum(answers[i : i + 4]) for i in range(0, len(answers), 4)] == [1] * len(places)

    asyncio.run(run())


def test_leases_never_exceed_the_capacity_and_none_leaks(url):
    capacity = 8

    async def run():
        async with opened(url) as one, opened(url) as other:
            stores = [one, other if url else one]
            busy = most = 0

            async def client(random, i):
                nonlocal busy, most
                store, lease = stores[i % 2], str(i)
                for _ in range(3):
                    if not await store.acquire("slots", capacity, lease, 60):
                        await asyncio.sleep(random.random() * 0.005)
                        continue
                    busy += 1
                    most = max(most, busy)
                    try:
                        await asyncio.sleep(random.random() * 0.005)
                    finally:
                        busy -= 1
                        await store.release("slots", lease)

            await crowd(client)
            for store in stores:
                await ended(store)
            assert 1 < most <= capacity
            again = [await one.acquire("slots", capacity, f"again-{i}", 60) for i in range(capacity + 1)]
            assert again == [True] * capacity + [False]

    asyncio.run(run())


def test_draws_in_any_order_do_not_deadlock(url):
    limits = [Limit(f"limit-{i}", 1e6, math.inf) for i in range(6)]

    async def run():
        async with opened(url) as store:

            async def client(random):
                for _ in range(5):
                    await store.reserve([Draw(limit, 1) for limit in random.sample(limits, 4)])

            await asyncio.gather(*(client(Random(i)) for i in range(50)))
            assert sum(1e6 - level.remaining for level in await store.levels(limits)) == 50 * 5 * 4

    asyncio.run(run())
