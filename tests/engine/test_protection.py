"""Steps of the highest priority grow by what `protect` allows and no more; the others take turns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.engine.load import Load
from coserve.engine.protection import Protection
from tests.engine.scheduling import active, new_scheduler, step


@dataclass
class Linear:
    """Predicts `base` seconds, and `row` more for each row."""

    base: float = 0.010
    row: float = 0.001

    def load_seconds(self, load: Load) -> float:
        return self.base + self.row * load.rows


def serve(protect, high: int, low: int, predictor: Linear, steps: int, **config):
    """So many endless streams of priority 10 and of priority 0; returns the requests and each step's growth."""
    scheduler = new_scheduler(blocks=4096, protect=protect, **config)
    protection = Protection(scheduler.config, predictor)
    highs = [active(1, max_tokens=10**6, priority=10) for _ in range(high)]
    lows = [active(1, max_tokens=10**6, share=f"project {i}") for i in range(low)]
    for request in (*highs, *lows):
        scheduler.add(request)
    now, growth = 0.0, []
    for _ in range(steps):
        plan = step(scheduler, now, protection=protection)
        took = plan.alone + plan.grown
        now += took
        growth.append(took / plan.alone)
        for request, segment in plan.chosen:
            if segment.sample:
                request.last_token = now
    return highs, lows, growth


@settings(deadline=None)
@given(st.floats(1.0, 2.0), st.integers(1, 8), st.integers(1, 20), st.floats(1e-5, 0.05))
def test_the_highest_priority_rides_in_every_step_and_pays_at_most_the_factor(protect, high, low, row):
    highs, _, growth = serve(protect, high, low, Linear(row=row), 100, aging_seconds=1e9)
    assert all(r.completion_tokens == 100 for r in highs)
    assert sum(growth) / len(growth) <= protect * (1 + 1e-9)


@settings(deadline=None)
@given(st.floats(1.02, 2.0), st.integers(1, 20), st.floats(1e-5, 0.05))
def test_lower_rows_take_turns_and_none_is_left_behind(protect, low, row):
    steps = int(low * row / ((protect - 1) * 0.010)) + 3
    if steps < 1000:
        _, lows, _ = serve(protect, 1, low, Linear(row=row), 3 * steps, aging_seconds=1e9)
        tokens = [r.completion_tokens for r in lows]
        assert min(tokens) >= 2 and max(tokens) - min(tokens) <= 1


def test_a_row_that_costs_more_than_a_step_allows_rides_every_few_steps():
    _, lows, growth = serve(1.10, 1, 1, Linear(base=0.010, row=0.005), 100)
    assert max(growth) < 1.4
    assert 25 <= lows[0].completion_tokens <= 31, "a row is a third of a step, and a tenth is allowed"


def test_a_prompt_of_lower_priority_is_cut_to_what_is_allowed_and_keeps_its_turn():
    scheduler = new_scheduler(blocks=64, protect=2.0)
    protection = Protection(scheduler.config, Linear())
    scheduler.add(active(1, priority=1))
    prompt, later = active(100, arrived=0.1), active(1, arrived=0.2)
    for request in (prompt, later):
        scheduler.add(request)
    chunks = [[s for r, s in step(scheduler, 1.0, protection=protection).chosen if r is prompt] for _ in range(6)]
    assert [len(s.tokens) for (s,) in chunks] == [11] * 6
    assert not later.computed


def test_with_one_priority_nothing_is_held_back():
    scheduler = new_scheduler(protect=1.0)
    for _ in range(5):
        scheduler.add(active(4, priority=3))
    plan = step(scheduler, protection=Protection(scheduler.config, Linear()))
    assert len(plan.chosen) == 5 and not plan.lower and not plan.short and plan.grown == 0


@pytest.mark.parametrize(("own", "rows"), [(None, 79), (0.050, 34), (0.011, 1)])
def test_under_goals_lower_rows_use_the_time_until_the_first_deadline(own, rows):
    """Of 100 ms (or the request's own goal) nine tenths are used, 10.5 ms of them without any row."""
    scheduler = new_scheduler(blocks=256, max_num_seqs=128, protect="goals", itl_goal=0.1)
    protection = Protection(scheduler.config, Linear(base=0.0105))
    high = active(4, priority=1, itl_goal=own)
    scheduler.add(high)
    step(scheduler, 0.0, protection=protection)
    high.last_token = 0.0
    for _ in range(100):
        scheduler.add(active(1))
    plan = step(scheduler, 0.0, max_tokens=256, protection=protection)
    assert len(plan.chosen) == rows and plan.short


def test_under_goals_a_prompts_time_is_for_all_of_its_chunks():
    scheduler = new_scheduler(blocks=256, protect="goals", ttft_goal=1.0)
    protection = Protection(scheduler.config, Linear())
    scheduler.add(active(200))
    step(scheduler, 0.0, max_tokens=16, protection=protection)
    scheduler.add(active(160, priority=1))
    plan = step(scheduler, 0.0, max_tokens=16, protection=protection)
    assert plan.alone == pytest.approx(0.026)
    assert plan.alone + plan.grown == pytest.approx(0.9 * 0.1), "a tenth of the prompt, a tenth of the second"


def test_one_that_protection_starves_rises_until_it_rides():
    """protect = 1: lower ones have only what the highest priority leaves, until they have waited long enough."""
    highs, lows, _ = serve(1.0, 1, 1, Linear(), 200, aging_seconds=0.1)
    assert highs[0].completion_tokens == 200
    assert 90 < lows[0].completion_tokens < 115, "ten priorities at a tenth of a second, in steps of 11 ms"


def test_what_riders_paid_for_a_step_that_did_not_take_place_is_theirs_again():
    scheduler = new_scheduler(blocks=4096, protect=1.10)
    protection = Protection(scheduler.config, Linear(row=0.001))
    for request in (active(1, max_tokens=99, priority=1), active(1, max_tokens=99)):
        scheduler.add(request)
    before = protection._balance
    plan = scheduler.plan(64, 0.0)
    assert protection.riders(plan, 64, 0.0) and plan.grown > 0
    earned = 0.1 * plan.alone
    protection.take_back(plan)
    assert protection._balance == pytest.approx(before + earned)
