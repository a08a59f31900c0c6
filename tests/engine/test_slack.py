"""The account that decides when training may take time from tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.engine.slack import SlackAccount

SECONDS = st.floats(1e-4, 0.2)


def simulate(factor: float, steps: list[float], smallest: float) -> list[float]:
    """Spend whatever is offered, at least the smallest slice; returns what each step was followed by."""
    account, spent = SlackAccount(factor), []
    for seconds in steps:
        budget = account.earn(seconds, seconds, smallest)
        use = budget if budget >= smallest else 0.0
        account.spend(use)
        spent.append(use)
    return spent


@given(st.floats(1.0, 3.0), st.lists(SECONDS, min_size=1, max_size=400), SECONDS)
def test_training_never_takes_more_than_its_factor_on_average(factor, steps, smallest):
    assert sum(simulate(factor, steps, smallest)) <= (factor - 1) * sum(steps) * (1 + 1e-9)


@given(st.floats(1.02, 3.0), SECONDS, SECONDS)
def test_training_is_never_starved(factor, step, smallest):
    enough = int(3 * smallest / ((factor - 1) * step)) + 200
    if enough < 5000:
        assert sum(simulate(factor, [step] * enough, smallest)) > 0


def test_steps_that_are_all_alike_grow_by_little_each():
    spent = simulate(1.10, [0.010] * 200, smallest=0.0005)
    assert max(spent) <= 2 * 0.1 * 0.010 + 1e-12
    assert sum(spent) > 0.9 * 0.1 * 0.010 * 200


def test_savings_are_spent_behind_cheap_steps_and_never_make_them_slower_than_the_slow_ones():
    steps = ([0.002] * 19 + [0.020]) * 60
    spent = simulate(1.10, steps, smallest=0.0002)
    behind_slow = [s for s, step in zip(spent[100:], steps[100:], strict=True) if step == 0.020]
    behind_cheap = [s for s, step in zip(spent[100:], steps[100:], strict=True) if step == 0.002]
    assert max(behind_slow) <= 0.2 * 0.020
    assert 0.010 < max(behind_cheap) <= 1.1 * 0.020 - 0.002
    assert sum(spent) > 0.8 * 0.1 * sum(steps)


def test_prompts_earn_nothing_while_others_decode():
    alike, mixed = SlackAccount(2.0), SlackAccount(2.0)
    alike.earn(0.005, 0.005, 0.0)
    mixed.earn(0.030, 0.005, 0.0)
    assert mixed.balance == alike.balance == pytest.approx(0.005)


def test_a_factor_of_one_earns_nothing():
    assert simulate(1.0, [0.01] * 50, 0.001) == [0.0] * 50
