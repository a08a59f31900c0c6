"""Slices that run later: how many are in flight, in which order, and what the estimator and the account are told."""

from __future__ import annotations

import pytest
import torch

from coserve.engine.background import Slice
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.clock import CpuClock, GpuClock, Readback
from coserve.roofline import Estimator, Roofline
from tests.engine.test_background_queue import CHIP, SECOND, Job


class Gpu:
    """Runs what is launched when time passes; its events keep the time, as `torch.cuda.Event`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def event(self) -> FakeEvent:
        return FakeEvent(self)


class FakeEvent:
    """`at`: when it will have happened, known when it is recorded: all that was launched before takes `took`. It waits
    by letting the time pass."""

    took = 0.0  # seconds, of all that was launched so far

    def __init__(self, gpu: Gpu):
        self.gpu = gpu
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.took

    def query(self) -> bool:
        return self.gpu.now >= self.at

    def synchronize(self) -> None:
        self.gpu.log.append(f"wait until {self.at:g}")
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


class Launched(Job):
    """Whose slices take `each` seconds of the GPU, whatever is predicted."""

    def __init__(self, slices: int, each: float):
        super().__init__(slices)
        self.each = each

    def next_slice(self, seconds: float) -> Slice | None:
        return None if self.finished else Slice("job", 1, SECOND, self._launch)

    def _launch(self) -> None:
        FakeEvent.took += self.each
        self._run()


@pytest.fixture
def gpu() -> Gpu:
    FakeEvent.took = 0.0
    return Gpu()


@pytest.fixture
def queue(gpu) -> BackgroundQueue:
    return BackgroundQueue(Estimator(Roofline(CHIP)), GpuClock(event=gpu.event))


def test_two_slices_are_in_flight_and_the_third_waits_for_the_first(gpu, queue):
    job = Launched(4, each=2.0)
    queue.add(job)
    for _ in range(2):
        queue.run(1.0, at_least_one=True)
    assert job.done == 2 and gpu.log == [] and queue.in_flight == queue.depth
    queue.run(1.0, at_least_one=True)
    assert job.done == 3 and gpu.log == ["wait until 2"] and gpu.now == 2.0
    gpu.now = 6.0
    assert queue.in_flight == 0


def test_as_many_slices_are_launched_as_fit_or_until_the_next_one_would_wait(gpu, queue):
    job = Launched(99, each=2.0)
    queue.add(job)
    assert queue.fill(1.5) == pytest.approx(1.0) and job.done == 1 and gpu.log == []
    assert queue.fill(99.0, lambda: queue.full) == pytest.approx(1.0) and job.done == 2 and gpu.log == []
    queue.fill(5.0)
    assert job.done > 2 and gpu.log[0] == "wait until 2"


def test_slices_end_when_somebody_comes(gpu, queue):
    job = Launched(9, each=1.0)
    queue.add(job)
    assert queue.fill(5.0, lambda: job.done == 2) == pytest.approx(2.0) and job.done == 2


def test_the_estimator_learns_what_a_slice_took_when_it_is_done(gpu, queue):
    queue.add(Launched(9, each=2.0))
    for _ in range(2):
        queue.run(1.0, at_least_one=True)
    assert "job" not in queue._estimator.corrections
    gpu.now = 4.0
    queue.run(1.0, at_least_one=True)
    assert queue._estimator.seconds("job", 1, SECOND) == pytest.approx(2.0)


def test_what_runs_return_adds_up_to_what_they_took(gpu, queue):
    queue.add(Launched(8, each=0.5))
    charged = 0.0
    while took := queue.run(1.0, at_least_one=True):
        charged += took
        gpu.now += 0.7
    queue.wait()
    assert charged + queue._owed == pytest.approx(8 * 0.5)
    assert abs(queue._owed) < 0.6  # of the last ones, which no call was left to put right


def test_a_slice_that_took_less_than_nothing_still_counts_as_one(gpu, queue):
    queue.add(Launched(3, each=0.0))
    for _ in range(3):
        assert queue.run(1.0, at_least_one=True) > 0
        gpu.now += 1


def test_a_queue_is_not_empty_while_a_slice_is_in_flight(gpu, queue):
    queue.add(Launched(1, each=2.0))
    queue.run(1.0, at_least_one=True)
    assert queue.run(1.0, at_least_one=True) == 0.0 and queue
    gpu.now = 2.0
    assert queue.run(1.0, at_least_one=True) == 0.0 and not queue


def test_waiting_ends_with_nothing_in_flight(gpu, queue):
    queue.add(Launched(2, each=2.0))
    for _ in range(2):
        queue.run(1.0, at_least_one=True)
    queue.wait()
    assert gpu.now == 4.0 and queue.in_flight == 0


def test_on_a_cpu_work_is_done_when_the_call_returns():
    ran = []
    timing = CpuClock().time(lambda: ran.append(1))
    assert ran == [1] and timing.done() and timing.seconds() > 0
    assert BackgroundQueue.on(torch.device("cpu"), Estimator(Roofline(CHIP))).depth == 1


def test_numbers_of_a_cpu_are_there_at_once():
    numbers = Readback(torch.tensor([1.5, 2.0]))
    assert numbers.ready() and numbers.values() == [1.5, 2.0]
