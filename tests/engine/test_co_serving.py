"""Serving and training on one GPU, for minutes of a virtual clock: what `protect` promises."""

from __future__ import annotations

import pytest

from tests.engine.virtual_gpu import Served, VirtualGpu, arrivals, quantile, serve, virtual_engine
from tests.tiny import tiny_checkpoint

SATURATING = 18.0  # requests/s


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def under(checkpoint, monkeypatch):
    """What is seen under a load."""

    def run(load: float, *, training: bool, number: int = 800, **config) -> Served:
        gpu = VirtualGpu()
        engine = virtual_engine(checkpoint, gpu, monkeypatch, **config)
        return serve(engine, gpu, arrivals(load * SATURATING, number), training=training)

    return run


@pytest.mark.parametrize(("factor", "load"), [(1.1, 0.25), (1.1, 0.5), (1.1, 0.75), (1.3, 0.5)])
def test_training_slows_tokens_by_the_factor_on_average_whatever_the_load(under, factor, load):
    alone, both = under(load, training=False), under(load, training=True, protect=factor)
    assert len(both.gaps) == len(alone.gaps)
    # Steps of more who decode take a little longer of themselves.
    assert 1 + 0.8 * (factor - 1) < both.itl / alone.itl < 1 + 1.3 * (factor - 1)
    assert both.training_share > 0.5 * (factor - 1)


@pytest.mark.parametrize("load", [0.25, 0.5, 0.75])
def test_training_hardly_moves_the_typical_token_the_slowest_ones_and_the_first(under, load):
    alone, both = under(load, training=False), under(load, training=True)
    assert quantile(both.gaps, 0.5) < 1.05 * quantile(alone.gaps, 0.5)
    assert quantile(both.gaps, 0.99) < 1.20 * quantile(alone.gaps, 0.99)
    assert quantile(both.waits, 0.5) < 1.10 * quantile(alone.waits, 0.5)
    assert quantile(both.waits, 0.99) < 1.10 * quantile(alone.waits, 0.99)


def test_a_factor_of_one_trains_while_nobody_is_served(under):
    alone, both = under(0.5, training=False), under(0.5, training=True, protect=1.0)
    assert both.itl == pytest.approx(alone.itl, rel=0.01)
    assert 0 < both.training_share < 0.02


@pytest.mark.parametrize(("load", "itl_goal", "share"), [(0.25, 0.03, 0.5), (0.5, 0.1, 0.6), (0.5, 0.03, 0.4)])
def test_under_goals_training_has_what_the_deadlines_leave(under, load, itl_goal, share):
    goals = {"protect": "goals", "itl_goal": itl_goal, "ttft_goal": 1.0}
    both = under(load, training=True, number=300, **goals)
    assert both.training_share > share
    assert quantile(both.gaps, 0.95) < itl_goal * 1.3  # who comes is let in while slices are on their way
    assert quantile(both.gaps, 0.99) < itl_goal * 1.6
    assert quantile(both.waits, 0.5) < 0.1 and quantile(both.waits, 0.99) < 1.0, "prompts come before training"


def test_slices_do_not_come_between_a_prompt_and_its_step(checkpoint, monkeypatch):
    """A request that has come since they were found to be due has them wait."""
    gpu = VirtualGpu()
    engine = virtual_engine(checkpoint, gpu, monkeypatch)
    late = []
    fill = engine._background.fill

    def watched(seconds, *interrupted):
        took = fill(seconds, *interrupted)
        late.append(took > 0 and engine.scheduler.backlog)
        return took

    monkeypatch.setattr(engine._background, "fill", watched)
    serve(engine, gpu, arrivals(0.5 * SATURATING, 300), training=True)
    assert late and not any(late)
