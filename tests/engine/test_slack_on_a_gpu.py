"""Slices between the steps of a GPU, in made-up time: what steps lose by them, and what training gets.

The account, the queue and the stages are the engine's and the trainer's own; a model of Llama 3.1 8B's size decodes on
a GPU of an H200's speed, and is trained on 4 sequences of 2048 tokens.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterator

import pytest

from coserve.engine.background import Slice
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.clock import GpuClock
from coserve.engine.slack import SlackAccount
from coserve.roofline import Chip, Estimator, Roofline, Work
from coserve.training.stages import Stage, Stages

CHIP = Chip("H200", "bfloat16", bandwidth=4.2e12, flops=650e12)
SEQUENCES, ROWS, WEIGHTS, MLP_WEIGHTS = 4, 2048, 218e6, 193e6
SLOWER = {"whole": 1.1, "part": 1.25}  # than the roofline says: nobody knows before


class Gpu:
    """One stream: what is launched takes its time behind what was launched before."""

    def __init__(self) -> None:
        self.now = self.until = 0.0

    def launch(self, seconds: float) -> float:
        """When it will be done."""
        self.until = max(self.now, self.until) + seconds
        return self.until

    def wait(self, until: float) -> None:
        self.now = max(self.now, until)

    def event(self) -> Event:
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu):
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self.gpu.now, self.gpu.until)

    def query(self) -> bool:
        return self.gpu.now >= self.at

    def synchronize(self) -> None:
        self.gpu.wait(self.at)

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class Training:
    """Layers without end, forward; `done` counts the seconds that they would have taken as a whole."""

    finished = False

    def __init__(self, gpu: Gpu, estimator: Estimator, seed: int, *, parts: bool):
        self.gpu, self.noise, self.parts, self.done = gpu, random.Random(seed), parts, 0.0
        self.longest = 0.0
        self.stages = Stages((self.layer() for _ in itertools.count()), estimator)

    def ride(self, max_rows: int) -> None:
        return None

    def next_slice(self, seconds: float, *, whole: bool = False) -> Slice | None:
        return self.stages.next_slice(seconds, whole=whole)

    def failed(self, error: Exception) -> None:
        raise error

    def layer(self) -> Stage:
        finer = (lambda first: self.of_rows()) if self.parts else None
        return self.stage("whole", SEQUENCES, ROWS * WEIGHTS, rows=lambda a, b: (b - a) * ROWS, finer=finer)

    def of_rows(self) -> Iterator[Stage]:
        yield self.stage("part", 1, ROWS * (WEIGHTS - MLP_WEIGHTS), rows=lambda a, b: ROWS // 8)
        yield self.stage("part", ROWS, MLP_WEIGHTS, step=128, most=512)

    def stage(self, kind: str, items: int, of_one: float, **more) -> Stage:
        def run(first: int, last: int) -> None:
            ideal = 2 * (last - first) * of_one / CHIP.flops
            took = ideal * SLOWER[kind] * self.noise.uniform(0.95, 1.05)
            self.gpu.launch(took)
            self.done += ideal
            self.longest = max(self.longest, took)

        return Stage(kind, items, run, lambda a, b: Work(0, 2 * (b - a) * of_one), **more)


class Served:
    """Steps of so many seconds, each launched while the one before it runs, with slices behind it."""

    def __init__(self, steps: list[float], *, saves: bool = False, parts: bool = True, factor: float = 1.10):
        gpu, estimator = Gpu(), Estimator(Roofline(CHIP))
        queue, account = BackgroundQueue(estimator, GpuClock(event=gpu.event)), SlackAccount(factor, saves=saves)
        self.training = Training(gpu, estimator, 0, parts=parts)
        queue.add(self.training)
        self.between: list[float] = []  # from one step's end to the next one's
        landed, ahead, self.spent = 0.0, gpu.launch(steps[0]), 0.0
        for seconds, following in itertools.pairwise(steps):
            end, ahead = ahead, gpu.launch(following)
            gpu.wait(end)
            assert gpu.now == end  # nobody waited for anything but the step
            self.between.append(end - landed)
            landed = end
            smallest = queue.smallest()
            assert smallest is not None
            spent = queue.fill(account.earn(seconds, smallest))
            account.spend(spent)
            self.spent += spent
        self.steps, self.seconds = steps[:-1], landed
        self.speed = self.training.done * SLOWER["whole"] / landed  # of the training alone


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def alike(count: int = 4000) -> list[float]:
    noise = random.Random(1)
    return [0.005 * noise.uniform(0.97, 1.03) for _ in range(count)]


def with_prompts(count: int = 8000) -> list[float]:
    """One in ten has a prompt in it."""
    noise = random.Random(2)
    return [0.005 + (noise.expovariate(1 / 0.015) if noise.random() < 0.1 else 0.0) for _ in range(count)]


def test_between_steps_that_are_alike_the_budget_is_used_and_no_step_is_made_longer_than_it_allows():
    served = Served(alike())
    steady, alone = served.between[500:], served.steps[500:]
    assert 1.07 < statistics.median(steady) / statistics.median(alone) < 1.10
    assert all(grown < 1.13 * step for grown, step in zip(steady, alone, strict=True))
    assert served.speed > 0.07
    assert served.training.longest < 0.0005


def test_without_parts_a_slice_is_too_long_for_a_step():
    """What was measured on an H200 before there were any: half of the tokens as fast as alone, a third much later."""
    served = Served(alike(), parts=False)
    assert statistics.median(served.between) / statistics.median(served.steps) < 1.05
    assert quantile(served.between, 0.99) / quantile(served.steps, 0.99) > 1.25


def test_where_some_steps_have_prompts_no_token_is_later_than_those_steps_make_it():
    served = Served(with_prompts())
    assert statistics.median(served.between) / statistics.median(served.steps) < 1.10
    assert quantile(served.between, 0.99) / quantile(served.steps, 0.99) < 1.10
    assert served.speed > 0.07


@pytest.mark.parametrize("steps", [alike(), with_prompts()])
@pytest.mark.parametrize("factor", [1.02, 1.10, 1.5])
def test_on_average_training_takes_no_more_than_the_factor_allows(steps, factor):
    served = Served(steps, factor=factor)
    taken = served.seconds - sum(served.steps)
    assert 0.85 * (factor - 1) * sum(served.steps) < taken < (factor - 1) * sum(served.steps) + 0.002
