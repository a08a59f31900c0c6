"""Serving under load: closed and open loop."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.chips import find_chip
from coserve.planner.layout import Layout
from coserve.planner.replica import Replica
from coserve.planner.serving import (
    Limits,
    Requests,
    best_throughput,
    closed_loop,
    crowded,
    open_loop,
    tail,
)
from coserve.planner.shape import load_shape

REPLICA = Replica(load_shape("Llama-3.1-8B"), find_chip("H100 SXM"))
LARGE = Replica(load_shape("Llama-3.1-70B"), find_chip("H200 SXM"), Layout(tp=4), "float8")
CHAT = Requests(1000, 300)

requests = st.builds(Requests, st.floats(10, 8000), st.floats(10, 4000), st.floats(0, 0.9))


@settings(deadline=None)
@given(requests, st.integers(1, 300))
def test_more_users_are_never_quicker_for_one_of_them(asked: Requests, users: int) -> None:
    few, many = closed_loop(LARGE, asked, users), closed_loop(LARGE, asked, users + 1)
    assert few.tpot <= many.tpot * (1 + 1e-9)
    assert few.ttft <= many.ttft * (1 + 1e-9)
    assert 0 <= few.busy <= 1


@settings(deadline=None)
@given(requests, st.floats(0.001, 5))
def test_as_many_run_as_littles_law_says(asked: Requests, rate: float) -> None:
    found = open_loop(LARGE, asked, rate)
    if found is not None:
        closed = closed_loop(LARGE, asked, found.running)
        assert closed.rate == pytest.approx(rate, rel=0.03)
        assert found.running == pytest.approx(rate * (closed.ttft + asked.output * closed.tpot), rel=0.03)


@settings(deadline=None)
@given(requests, st.floats(0.001, 5), st.floats(1.01, 4))
def test_a_lighter_load_is_never_slower(asked: Requests, rate: float, times: float) -> None:
    heavy, light = open_loop(LARGE, asked, rate * times), open_loop(LARGE, asked, rate)
    if heavy is not None:
        assert light is not None
        assert light.tpot <= heavy.tpot * 1.01
        assert light.ttft <= heavy.ttft * 1.01


def test_no_replica_keeps_up_with_any_rate() -> None:
    most = best_throughput(REPLICA, CHAT)
    assert most is not None
    assert open_loop(REPLICA, CHAT, most.rate * 1.01) is None
    assert open_loop(REPLICA, CHAT, most.rate * 0.9) is not None


def test_users_beyond_the_slots_wait_for_one() -> None:
    slots = REPLICA.slots(CHAT.context)
    full, over = closed_loop(REPLICA, CHAT, slots), closed_loop(REPLICA, CHAT, slots + 100)
    assert over.tpot == full.tpot and over.rate == full.rate
    assert over.ttft - full.ttft == pytest.approx(100 / full.rate)


def test_limits_are_kept_by_the_tail() -> None:
    limits = Limits(ttft=0.4, tpot=0.015)
    found = best_throughput(LARGE, CHAT, limits)
    assert found is not None
    worst = tail(LARGE, CHAT, found)
    assert worst.tpot <= limits.tpot and worst.ttft <= limits.ttft
    more = closed_loop(LARGE, CHAT, found.running * 1.1)
    beyond = tail(LARGE, CHAT, more)
    assert beyond.tpot > limits.tpot or beyond.ttft > limits.ttft  # no load much above was possible
    assert best_throughput(LARGE, CHAT, Limits(tpot=1e-4)) is None


def test_the_tail_is_never_better_than_the_mean() -> None:
    for rate in (0.1, 1.0, 5.0):
        found = open_loop(LARGE, CHAT, rate)
        assert found is not None
        worst = tail(LARGE, CHAT, found)
        assert worst.tpot >= found.tpot and worst.itl >= found.step.total


def test_cached_prompts_cost_less() -> None:
    cold, warm = (closed_loop(REPLICA, Requests(4000, 300, cached), 32) for cached in (0.0, 0.8))
    assert warm.ttft < cold.ttft and warm.tpot < cold.tpot and warm.rate > cold.rate
    assert warm.step.total == cold.step.total  # the cache is read all the same


def test_speculation_gains_by_what_is_accepted() -> None:
    assert Requests(1, 1).tokens_per_step == 1
    assert Requests(1, 1, drafted=3, acceptance=0.5).tokens_per_step == 1 + 0.5 + 0.25 + 0.125
    plain = closed_loop(REPLICA, CHAT, 1)
    good = closed_loop(REPLICA, Requests(1000, 300, drafted=3, acceptance=0.8), 1)
    bad = closed_loop(REPLICA, Requests(1000, 300, drafted=3, acceptance=0.0), 1)
    assert good.tpot < plain.tpot / 2 and bad.tpot > plain.tpot


def test_prompts_elsewhere_leave_decoding_alone() -> None:
    apart = closed_loop(REPLICA, Requests(1000, 300, elsewhere=True), 64)
    assert apart.tpot == apart.step.total and apart.busy == 0
    assert apart.tpot < closed_loop(REPLICA, CHAT, 64).tpot


def test_a_crowd_is_99th_percentile_of_a_poisson_count() -> None:
    """Against the sum of the distribution itself."""
    mean = 40
    total, k = 0.0, -1
    while total < 0.99:
        k += 1
        total += math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1))
    assert crowded(mean) == pytest.approx(k, abs=1.5)
