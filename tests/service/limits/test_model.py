"""Whatever is drawn and whenever: the stores keep to the rule of a token bucket."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from fractions import Fraction
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coserve.service.limits import Draw, Limit, Refusal
from coserve.service.limits.memory import MemoryStore
from tests.service.limits.stores import Clock, opened

LIMITS = [Limit("minute", 60, 64), Limit("burst", 5, 4), Limit("month", 200, math.inf)]

draws = st.lists(st.builds(Draw, st.sampled_from(LIMITS), st.integers(0, 80)), max_size=4)
corrections = st.lists(st.builds(Draw, st.sampled_from(LIMITS), st.integers(-40, 40)), max_size=3)
seconds = st.integers(0, 40).map(lambda eighths: eighths / 8)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), draws),
        st.tuples(st.just("settle"), corrections),
        st.tuples(st.just("preset"), st.builds(Draw, st.sampled_from(LIMITS), st.integers(0, 80))),
        st.tuples(st.just("wait"), seconds),
    ),
    max_size=25,
)


@dataclass
class Model:
    """The rule, in the plainest and exact form: what remains of each, refilled whenever time passes."""

    remaining: dict[str, Fraction] = field(default_factory=dict)

    def level(self, limit):
        return self.remaining.get(limit.key, Fraction(limit.capacity))

    def wait(self, seconds):
        for limit in LIMITS:
            flow = 0 if limit.period == math.inf else Fraction(limit.capacity) / Fraction(limit.period)
            self.remaining[limit.key] = min(Fraction(limit.capacity), self.level(limit) + flow * Fraction(seconds))
        self.remaining = {limit.key: self.level(limit) for limit in LIMITS if self.level(limit) < limit.capacity}

    def reserve(self, draws):
        total = {draw.limit: Fraction(0) for draw in draws}
        for draw in draws:
            total[draw.limit] += Fraction(draw.amount)
        if any(amount > self.level(limit) for limit, amount in total.items()):
            return False
        self.settle(draws)
        return True

    def settle(self, corrections):
        total = {draw.limit: Fraction(0) for draw in corrections}
        for draw in corrections:
            total[draw.limit] += Fraction(draw.amount)
        for limit, amount in total.items():
            self.remaining[limit.key] = min(Fraction(limit.capacity), self.level(limit) - amount)


async def walk(store, clock, model, steps):
    """The same steps in both; they agree after each."""
    for step, what in steps:
        if step == "wait":
            clock.now += what
            model.wait(what)
        elif step == "reserve":
            granted = model.reserve(what)
            assert isinstance(await store.reserve(what), list) == granted
        elif step == "settle":
            model.settle(what)
            await store.settle(what)
        elif step == "preset" and model.level(what.limit) == what.limit.capacity:
            model.settle([what])
            await store.preset(what.limit, what.amount)
        levels = await store.levels(LIMITS)
        assert [level.remaining for level in levels] == pytest.approx([float(model.level(limit)) for limit in LIMITS])


@given(steps)
def test_in_memory_every_step_agrees_with_the_model(steps):
    clock = Clock()
    asyncio.run(walk(MemoryStore(clock), clock, Model(), steps))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_on_a_server_every_step_agrees_with_the_model(server, steps):
    """Without the waiting, for the server's clock is its own: so all limits are such that never refill."""
    _, url = server

    def slow(draw):
        return Draw(Limit(draw.limit.key + salt, draw.limit.capacity, math.inf), draw.amount)

    async def run():
        model = Model()
        async with opened(url) as store:
            for step, what in steps:
                if step == "reserve":
                    assert isinstance(await store.reserve([slow(draw) for draw in what]), list) == model.reserve(what)
                elif step == "settle":
                    model.settle(what)
                    await store.settle([slow(draw) for draw in what])
                levels = await store.levels([slow(Draw(limit, 0)).limit for limit in LIMITS])
                assert [level.remaining for level in levels] == [float(model.level(limit)) for limit in LIMITS]

    salt = uuid4().hex
    asyncio.run(run())


waits_and_amounts = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 70)), max_size=30)


@given(waits_and_amounts)
def test_no_window_sees_more_than_the_capacity_and_what_flows_back(sequence):
    clock, limit = Clock(), Limit("x", 60, 60)
    granted: list[tuple[float, float]] = []

    async def run():
        store = MemoryStore(clock)
        for wait, amount in sequence:
            clock.now += wait
            if isinstance(await store.reserve([Draw(limit, amount)]), list):
                granted.append((clock.now, amount))

    asyncio.run(run())
    for first, (start, _) in enumerate(granted):
        total = 0.0
        for end, amount in granted[first:]:
            total += amount
            assert total <= limit.capacity + limit.rate * (end - start) + 1e-6


@given(steps, draws)
def test_after_the_time_that_a_refusal_names_it_is_granted_and_not_before(steps, draws):
    async def run():
        clock = Clock()
        store = MemoryStore(clock)
        await walk(store, clock, Model(), steps)
        refusal = await store.reserve(draws)
        if not isinstance(refusal, Refusal) or refusal.retry_after == math.inf:
            return
        start = clock.now
        clock.now = start + refusal.retry_after * 0.999
        assert isinstance(await store.reserve(draws), Refusal)
        clock.now = start + refusal.retry_after
        assert isinstance(await store.reserve(draws), list)

    asyncio.run(run())


@given(st.integers(0, 60), st.integers(0, 100), seconds, seconds)
def test_an_estimate_that_is_settled_leaves_what_the_truth_would_have(estimate, actual, before, between):
    """If nothing of it had flowed back meanwhile; else it is as if the truth had been drawn at the end."""

    async def run():
        clock, limit = Clock(), LIMITS[0]
        store = MemoryStore(clock)
        await store.reserve([Draw(limit, 60)])
        clock.now += 64
        await store.reserve([Draw(limit, estimate)])
        clock.now += before
        flowed = min(estimate, limit.rate * before)
        [level] = await store.settle([Draw(limit, actual - estimate)])
        assert level.remaining == pytest.approx(min(60, 60 - actual + flowed))

    asyncio.run(run())


def test_a_clock_that_goes_back_neither_grants_nor_takes():
    async def run():
        clock, limit = Clock(), Limit("x", 10, 10)
        store = MemoryStore(clock)
        await store.reserve([Draw(limit, 8)])
        clock.now -= 1000
        assert (await store.levels([limit]))[0].remaining == 2

    asyncio.run(run())


def test_memory_forgets_what_is_full_or_over():
    async def run():
        clock = Clock()
        store = MemoryStore(clock)
        for i in range(5000):
            clock.now += 1
            await store.reserve([Draw(Limit(f"bucket-{i}", 10, 10), 5), Draw(Limit(f"other-{i}", 10, 10), 5)])
            await store.acquire(f"slots-{i}", 1, "killed", 5)
        assert len(store._buckets) < 50 and len(store._leases) < 50

    asyncio.run(run())
