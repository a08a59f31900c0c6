"""Background work one at a time, in order; what fails leaves and stops nothing else."""

from __future__ import annotations

import pytest

from coserve.engine.background import Slice
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.batch import Ride
from coserve.errors import CoserveError
from coserve.roofline import Chip, Estimator, Roofline, Work

SECOND = Work(0, 1e9)  # on this chip
CHIP = Chip("test", "float32", bandwidth=1e9, flops=1e9)


class Job:
    """`slices` slices of a second each, one of which may raise."""

    def __init__(self, slices: int, fails_at: int | None = None, error: Exception | None = None):
        self.left, self.fails_at, self.error = slices, fails_at, error or RuntimeError("a bug")
        self.done = 0
        self.asked = 0
        self.failure: Exception | None = None
        self.kept = 0  # what it can do without, so many times

    begun = True

    @property
    def finished(self) -> bool:
        return self.done == self.left

    def ride(self, max_rows: int) -> Ride | None:
        return Ride([], lambda layer, x: None, self._run)

    def next_slice(self, seconds: float) -> Slice | None:
        self.asked += 1
        return None if self.finished else Slice("job", 1, SECOND, self._run)

    def _run(self) -> None:
        if self.done == self.fails_at:
            raise self.error
        self.done += 1

    def give_way(self) -> bool:
        self.kept -= 1
        return self.kept >= 0

    def failed(self, error: Exception) -> None:
        self.failure = error


@pytest.fixture
def queue() -> BackgroundQueue:
    return BackgroundQueue(Estimator(Roofline(CHIP)))


def test_works_run_one_after_the_other(queue):
    first, second = Job(2), Job(1)
    queue.add(first)
    queue.add(second)
    queue.run(1.0, at_least_one=True)
    assert (first.done, second.done) == (1, 0)
    for _ in range(3):
        queue.run(1.0, at_least_one=True)
    assert first.finished and second.finished
    assert queue.run(1.0, at_least_one=True) == 0.0 and not queue


def test_a_slice_that_does_not_fit_waits_unless_one_must_run(queue):
    job = Job(3)
    queue.add(job)
    assert queue.run(0.5) == 0.0 and job.done == 0
    assert queue.run(0.5, at_least_one=True) > 0 and job.done == 1


def test_a_slice_that_never_fits_runs_now_and_then(queue):
    job = Job(9)
    queue.add(job)
    assert queue.fill(0.0) == 0.0
    for _ in range(256):
        assert queue.fill(0.5) == 0.0
    assert queue.fill(0.5, lambda: True) == 0.0, "not while somebody comes"
    assert queue.fill(0.5) > 0 and job.done == 1
    ran = [n for n in range(300) if queue.fill(0.5) > 0]
    assert ran == [256] and job.finished, "it was not learnt from the first, but from the second, how fast they are"


def test_the_smallest_slice_is_asked_for_only_after_a_change(queue):
    job = Job(3)
    queue.add(job)
    assert queue.smallest() == queue.smallest() == pytest.approx(1.0)
    assert job.asked == 1
    ride = queue.ride(4)
    assert ride is not None and queue.ride(0) is None
    queue.rode(ride)
    queue.smallest()
    assert job.asked == 2 and job.done == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), CoserveError("bad data")])
def test_work_that_fails_is_told_and_leaves_and_the_next_one_runs(queue, error, caplog):
    broken, healthy = Job(3, fails_at=1, error=error), Job(1)
    queue.add(broken)
    queue.add(healthy)
    for _ in range(4):
        queue.run(1.0, at_least_one=True)
    assert broken.failure is error and broken.done == 1
    assert healthy.finished
    assert ("background work failed" in caplog.text) == isinstance(error, RuntimeError)


def test_the_first_work_gives_way_and_then_fails(queue):
    first, second, told = Job(3), Job(1), CoserveError("no memory")
    assert not queue.give_way() and not queue.end_first(told)
    first.kept = 1
    queue.add(first)
    queue.add(second)
    before = queue.smallest()
    assert queue.give_way() and not queue.give_way() and first.failure is None
    assert before and queue.smallest() and first.asked == 2, "what comes next may be another slice now"
    assert queue.end_first(told) and first.failure is told and second.failure is None
    queue.run(1.0, at_least_one=True)
    assert second.finished and not queue.end_first(told)
