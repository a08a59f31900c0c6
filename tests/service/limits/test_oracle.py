"""Another implementation of the token bucket, with the same draws at the same times, gives the same answers."""

import asyncio

import throttled
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.service.limits import Draw, Limit
from coserve.service.limits.memory import MemoryStore
from tests.service.limits.stores import Clock

CAPACITY, RATE = 20, 3  # whole numbers and seconds: the oracle knows no others


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), max_size=40))
def test_throttled_grants_the_same(sequence):
    clock, limit = Clock(), Limit("x", CAPACITY, CAPACITY / RATE)
    store = MemoryStore(clock)
    quota = throttled.per_sec(RATE, burst=CAPACITY)
    oracle = throttled.Throttled(using="token_bucket", quota=quota, store=throttled.MemoryStore())

    async def run():
        for wait, amount in sequence:
            clock.now += wait
            ours = isinstance(await store.reserve([Draw(limit, amount)]), list)
            theirs = oracle.limit("x", cost=amount)
            assert ours == (not theirs.limited)
            assert round((await store.levels([limit]))[0].remaining, 6) == theirs.state.remaining

    patched = throttled.utils.now_sec
    throttled.utils.now_sec = lambda: int(clock.now)
    try:
        asyncio.run(run())
    finally:
        throttled.utils.now_sec = patched
