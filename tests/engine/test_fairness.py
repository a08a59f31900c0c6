"""Shares of one priority get tokens by their weights, whoever asks for more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.engine.fairness import TokenCounters
from tests.engine.scheduling import active, new_scheduler, step


def test_the_counter_is_tokens_over_weight():
    counters = TokenCounters()
    counters.join("a")
    counters.join("b")
    counters.charge("a", 30, 1.0)
    counters.charge("b", 30, 3.0)
    assert (counters.served("a"), counters.served("b")) == (30, 10)


def test_idleness_earns_no_credit_and_a_debt_is_kept_while_others_are_served():
    counters = TokenCounters()
    counters.join("busy")
    counters.charge("busy", 1000, 1.0)
    counters.join("late")
    assert counters.served("late") == 1000, "lifted to the least of those that are there"
    counters.charge("late", 500, 1.0)
    counters.leave("late")
    counters.join("late")
    assert counters.served("late") == 1500, "leaving and coming back washes nothing away"


def test_when_nobody_is_left_all_start_anew():
    counters = TokenCounters()
    counters.join("a")
    counters.charge("a", 1000, 1.0)
    counters.leave("a")
    counters.join("b")
    counters.join("a")
    assert counters.served("a") == counters.served("b") == 0


def flood(weights: dict[str, float], sizes: dict[str, tuple[int, int]], seats: int, steps: int) -> dict[str, float]:
    """Each share always has requests waiting, of (prompt, output) tokens; returns its tokens over its weight."""
    scheduler = new_scheduler(blocks=4096, max_num_seqs=seats)
    requests = []
    for number in range(steps):
        for share, weight in weights.items():
            prompt, output = sizes[share]
            while sum(1 for r in scheduler.waiting if r.share == share) < 2 * seats:
                requests.append(active(prompt, arrived=number, max_tokens=output, share=share, weight=weight))
                scheduler.add(requests[-1])
        step(scheduler, number, max_tokens=10_000)
    served = dict.fromkeys(weights, 0.0)
    for request in requests:
        if request.admitted:
            served[request.share] += len(request.tokens) / request.request.weight
    return served


def test_two_floods_get_tokens_by_their_weights():
    served = flood({"a": 1.0, "b": 3.0}, {"a": (10, 20), "b": (10, 20)}, seats=4, steps=600)
    assert served["b"] == pytest.approx(served["a"], abs=4 * 30)
    assert served["a"] > 500


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.25, 4),
    st.floats(0.25, 4),
    st.tuples(st.integers(1, 40), st.integers(1, 10)),
    st.tuples(st.integers(1, 40), st.integers(1, 10)),
    st.integers(1, 6),
)
def test_floods_differ_by_no_more_than_what_their_seats_hold(first, second, small, large, seats):
    """VTC's bound: the difference does not grow with time."""
    served = flood({"a": first, "b": second}, {"a": small, "b": large}, seats, steps=150)
    bound = 2 * (seats + 1) * max(sum(small) / first, sum(large) / second)
    assert abs(served["a"] - served["b"]) <= bound


def test_a_crowd_of_one_project_does_not_keep_another_waiting():
    scheduler = new_scheduler(blocks=4096, max_num_seqs=4)
    for number in range(500):
        scheduler.add(active(10, arrived=number / 1000, max_tokens=10, share="noisy"))
    for number in range(5):
        step(scheduler, now=1 + number)
    quiet = active(10, arrived=200.0, max_tokens=10, share="quiet")
    scheduler.add(quiet)
    for number in range(12):  # a seat is free after ten steps
        step(scheduler, now=200 + number)
    assert quiet.completion_tokens > 0, "though the others have waited for minutes"


def test_within_a_share_the_oldest_goes_first():
    scheduler = new_scheduler(max_num_seqs=1)
    late, early = active(4, arrived=2.0, max_tokens=1), active(4, arrived=1.0, max_tokens=1)
    scheduler.add(late)
    scheduler.add(early)
    assert [step(scheduler, now=3.0).chosen[0][0] for _ in range(2)] == [early, late]


def test_what_was_not_served_after_all_is_given_back():
    counters = TokenCounters()
    counters.join("a")
    counters.charge("a", 30, 3.0)
    counters.refund("a", 30, 3.0)
    assert counters.served("a") == 0
    counters.leave("a")
    counters.refund("a", 1, 1.0)
    counters.join("a")
    assert counters.served("a") == 0, "when all have started anew there is no credit"
