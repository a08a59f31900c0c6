"""Slices between the steps of a GPU, in made-up time: what steps lose by them, and what training gets.

The account, the queue and the stages are the engine's and the trainer's own; a model of Llama 3.1 8B's size decodes on
a GPU of an H200's speed, and is trained on 4 sequences of 2048 tokens.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Prompt:
    arrived: float
    seconds: float


@dataclass(frozen=True)
class Flight:
    end: float
    seconds: float  # of the step itself
    decodes: bool


class Served:
    """Decode steps of 5 ms without end, and `rate` prompts a second that ride in them; slices behind each, until a
    prompt comes. As the engine does it: a step is launched while the one before it runs, unless a prompt is there."""

    def __init__(
        self,
        rate: float,
        *,
        factor: float = 1.10,
        saves: bool = False,
        parts: bool = True,
        listens: bool = True,
        seconds: float = 60.0,
    ):
        self.listens = listens
        self.gpu, estimator = Gpu(), Estimator(Roofline(CHIP))
        self.queue = BackgroundQueue(estimator, GpuClock(event=self.gpu.event))
        self.account = SlackAccount(factor, saves=saves)
        self.training = Training(self.gpu, estimator, 0, parts=parts)
        self.queue.add(self.training)
        self.prompts = deque(prompts(rate, seconds))
        self.noise = random.Random(1)
        self.gaps: list[float] = []  # from one step's end to the next one's
        self.spent = self.inference = landed = 0.0
        flight = None
        while self.gpu.now < seconds:
            flight = flight or self.launch()
            ahead = None if self.somebody_came() or not flight.decodes else self.launch()
            self.gpu.wait(flight.end)
            assert self.gpu.now == flight.end  # nobody waited for anything but the step
            self.gaps.append(flight.end - landed)
            self.inference, landed = self.inference + flight.seconds, flight.end
            self.train(flight.seconds)
            flight = ahead
        self.speed = self.training.done * SLOWER["whole"] / landed  # of the training alone

    def launch(self) -> Flight:
        seconds, decodes = 0.005 * self.noise.uniform(0.97, 1.03), True
        while self.somebody_came():
            seconds, decodes = seconds + self.prompts.popleft().seconds, False
        return Flight(self.gpu.launch(seconds), seconds, decodes)

    def somebody_came(self) -> bool:
        return bool(self.prompts) and self.prompts[0].arrived <= self.gpu.now

    def train(self, seconds: float) -> None:
        smallest = self.queue.smallest()
        assert smallest is not None
        spent = self.queue.fill(self.account.earn(seconds, smallest), lambda: self.listens and self.somebody_came())
        self.account.spend(spent)
        self.spent += spent


def prompts(rate: float, seconds: float) -> Iterator[Prompt]:
    random_, at = random.Random(3), 0.0
    while rate and at < seconds:
        at += random_.expovariate(rate)
        yield Prompt(at, 0.004 + random_.expovariate(1 / 0.012))


def quantile(served: Served, share: float) -> float:
    gaps = served.gaps[500:]  # when the estimator has learnt
    return sorted(gaps)[int(share * (len(gaps) - 1))]


def slowed(rate: float, share: float, served: Served) -> float:
    """A quantile of the times between tokens, over that without training."""
    return quantile(served, share) / quantile(Served(rate, factor=1.0), share)


def test_between_steps_that_are_alike_the_budget_is_used_and_no_step_is_made_longer_than_it_allows():
    served = Served(rate=0)
    assert 1.07 < slowed(0, 0.5, served) < 1.10
    assert slowed(0, 0.99, served) < 1.12 and slowed(0, 1.0, served) < 1.15
    assert served.speed > 0.07
    assert served.training.longest < 0.0005


@pytest.mark.parametrize("rate", [10, 15, 25])
def test_where_steps_have_prompts_neither_half_nor_the_slowest_of_the_tokens_are_slowed_more(rate):
    served = Served(rate)
    assert slowed(rate, 0.5, served) < 1.10
    assert slowed(rate, 0.99, served) < 1.10
    assert served.speed > 0.06


@pytest.mark.parametrize("rate", [0, 15])
@pytest.mark.parametrize("factor", [1.02, 1.10, 1.5])
def test_on_average_training_takes_no_more_than_the_factor_allows(rate, factor):
    served = Served(rate, factor=factor)
    taken = served.gpu.now - served.inference
    assert 0.6 * (factor - 1) * served.inference < taken < (factor - 1) * served.inference + 0.02


def test_without_parts_a_slice_is_too_long_for_a_step():
    """It is paid for by several steps, and lengthens one."""
    served = Served(rate=0, parts=False)
    assert slowed(0, 0.5, served) < 1.05 and slowed(0, 0.99, served) > 1.25


def test_savings_leave_half_of_the_tokens_their_speed_at_the_cost_of_others():
    """What was measured on an H200: long slices behind few steps."""
    saving = Served(15, saves=True)
    assert slowed(15, 0.5, saving) < 1.01 and slowed(15, 0.9, saving) > 2.5


def test_slices_that_go_on_when_a_request_comes_make_the_slowest_tokens_slower():
    """The next step finds more prompts."""
    assert slowed(15, 0.99, Served(15, listens=False)) > slowed(15, 0.99, Served(15)) + 0.02
