"""The cost model: what it must always say, and that it learns from what it sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.roofline import Chip, Correction, Estimator, Roofline, Work

CHIP = Chip("c", "bfloat16", bandwidth=1e10, flops=1e12, efficiency=0.8, overlap=0.7)
AMOUNT = st.floats(0, 1e12)


@given(AMOUNT, AMOUNT, st.floats(1, 10))
def test_more_of_anything_never_takes_less_time(bytes_, flops, more):
    model, work = Roofline(CHIP), Work(bytes_, flops)
    assert model.seconds(Work(bytes_ * more, flops)) >= model.seconds(work)
    assert model.seconds(Work(bytes_, flops * more)) >= model.seconds(work)


@given(AMOUNT, AMOUNT)
def test_seconds_lie_between_full_overlap_and_none(bytes_, flops):
    moving, computing = bytes_ / 8e9, flops / 1e12
    seconds = Roofline(CHIP).seconds(Work(bytes_, flops))
    assert max(moving, computing) * (1 - 1e-9) <= seconds <= (moving + computing) * (1 + 1e-9)


def test_a_correction_learns_a_factor_of_two_and_forgives_an_outlier():
    estimator, work = Estimator(Roofline(CHIP)), Work(1e8, 0)
    plain = estimator.seconds("step", 4, work)
    for _ in range(30):
        estimator.observe("step", 4, work, 2 * plain)
    assert estimator.seconds("step", 4, work) == pytest.approx(2 * plain, rel=0.01)
    estimator.observe("step", 4, work, 100 * plain)
    assert estimator.seconds("step", 4, work) < 2.3 * plain
    assert estimator.seconds("another", 4, work) == plain


def test_the_first_of_a_size_is_not_learnt_from():
    estimator, work = Estimator(Roofline(CHIP)), Work(1e8, 0)
    plain = estimator.seconds("slice", 2048, work)
    estimator.observe("slice", 2048, work, 50 * plain)
    assert estimator.seconds("slice", 2048, work) == plain and not estimator.corrections["slice"]
    estimator.observe("slice", 2048, work, 10 * plain)
    assert estimator.seconds("slice", 2048, work) == pytest.approx(10 * plain), "the roofline may be far off"
    for _ in range(2):
        estimator.observe("slice", 4096, work, 100 * plain)
    assert estimator.seconds("slice", 4096, work) <= 20 * plain * (1 + 1e-9), "twice what its neighbour suggests"


def test_what_was_thought_too_slow_is_soon_thought_fast():
    estimator, work = Estimator(Roofline(CHIP)), Work(1e8, 0)
    plain = estimator.seconds("slice", 2048, work)
    for seen in (50, 50, 1, 1, 1, 1, 1):
        estimator.observe("slice", 2048, work, seen * plain)
    assert estimator.seconds("slice", 2048, work) < 2 * plain


def test_a_correction_is_interpolated_between_numbers_of_rows():
    correction = Correction()
    for rows, factor in ((1, 1.0), (16, 4.0)):
        for _ in range(20):
            correction.observe(rows, correction.factor(rows), factor)
    assert correction.factor(4) == pytest.approx(2.0, rel=0.05)
    assert correction.factor(1000) == pytest.approx(4.0, rel=0.05)
