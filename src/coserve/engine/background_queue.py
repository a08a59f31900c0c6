"""The queue of background work: the first one's slices run in the slack, and trouble of its own ends nothing else.

On a GPU a slice is launched and runs later, on the stream of the engine's steps: a step behind a slice waits for it. So
the order of launches is the order of all reads and writes. For what leaves that order:

- What leaves a work (metrics, checkpoints, an adapter) is read after an event behind its last write, by a thread that
  waits for that event; an adapter is served from its file.
- A slice in flight holds its work: nothing is freed before the slice is done, even if the work has been cancelled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from coserve.engine.background import BackgroundWork, Slice
from coserve.engine.batch import Ride
from coserve.engine.clock import Clock, CpuClock, GpuClock, Timing
from coserve.errors import CoserveError
from coserve.roofline import Estimator

log = logging.getLogger(__name__)
T = TypeVar("T")

_PATIENCE = 256  # times that a slice is passed over
_LEAST = 1e-9  # seconds that a slice counts for at least, whatever others took less than was thought


@dataclass(frozen=True)
class _Flight:
    """A slice that was launched, and what it was thought to take."""

    piece: Slice
    predicted: float
    timing: Timing


class BackgroundQueue:
    """Works run one at a time, in order. One that is finished or fails leaves. For the engine's thread alone."""

    def __init__(self, estimator: Estimator, clock: Clock | None = None):
        self._estimator = estimator
        self._clock = clock or CpuClock()
        self._works: deque[BackgroundWork] = deque()
        self._smallest: float | None = None
        self._flights: deque[_Flight] = deque()
        self._passed_over = 0  # times in a row that the smallest slice did not fit
        self._owed = 0.0  # seconds that finished slices took more than `run` has said

    @classmethod
    def on(cls, device: torch.device, estimator: Estimator) -> BackgroundQueue:
        """The queue for work on a device."""
        return cls(estimator, CpuClock() if device.type == "cpu" else GpuClock())

    def __bool__(self) -> bool:
        return bool(self._works or self._flights)

    @property
    def depth(self) -> int:
        """How many slices may be in flight."""
        return self._clock.most_in_flight

    @property
    def in_flight(self) -> int:
        self._read_finished()
        return len(self._flights)

    @property
    def full(self) -> bool:
        """Whether the next slice would wait for the oldest one."""
        return self.in_flight >= self.depth

    def add(self, work: BackgroundWork) -> None:
        self._works.append(work)

    def ride(self, max_rows: int) -> Ride | None:
        """At most `max_rows` tokens that could go along in the next batch."""
        return self._guard(lambda work: work.ride(max_rows)) if max_rows else None

    def rode(self, ride: Ride) -> None:
        """The batch with these tokens in it has been computed, or launched."""
        self._smallest = None
        self._guard(lambda _: ride.done())

    def smallest(self) -> float | None:
        """Predicted seconds of the smallest next slice; None if there is none now.

        The work is asked only when something has changed: asking takes time as well.
        """
        if self._smallest is None:
            piece = self._guard(lambda work: work.next_slice(0.0))
            self._smallest = self._seconds(piece) if piece is not None else None
        return self._smallest

    def fill(self, seconds: float, interrupted: Callable[[], bool] = lambda: False) -> float:
        """Run slices, one after the other while they should fit, or until `interrupted`; returns what they took.

        If for long not even the smallest has fitted, one runs all the same: else it would never, even if it is only
        thought to take so long.
        """
        took, smallest = 0.0, self.smallest()
        if smallest is None or seconds <= 0:
            return 0.0
        self._passed_over = self._passed_over + 1 if smallest > seconds else 0
        overdue = self._passed_over > _PATIENCE
        while smallest is not None and (overdue or took + smallest <= seconds) and not interrupted():
            took += self.run(seconds - took, at_least_one=True)
            if overdue:
                overdue, self._passed_over = False, 0
            smallest = self.smallest()
        return took

    def run(self, seconds: float, *, at_least_one: bool = False) -> float:
        """Run (on a GPU, launch) the next slice if it should fit into `seconds`; returns what it took, 0 if none ran.

        Of a slice that is still in flight what it took is a prediction, put right in what later calls return. Waits for
        the oldest slice if too many are in flight.
        """
        self._smallest = None
        while self.full:
            self._land()
        piece = self._guard(lambda work: work.next_slice(seconds))
        if piece is None:
            return 0.0
        predicted = self._seconds(piece)
        if not (at_least_one or predicted <= seconds):
            return 0.0
        timing = self._clock.time(lambda: self._guard(lambda _: piece.run()))
        self._flights.append(_Flight(piece, predicted, timing))
        self._read_finished()
        took = max(_LEAST, predicted + self._owed)
        self._owed += predicted - took
        return took

    def give_way(self) -> bool:
        """Have the first work free memory that it can do without. Whether it had any of that kind."""
        self.wait()
        self._smallest = None
        return bool(self._guard(lambda work: work.give_way()))

    def end_first(self, error: Exception) -> bool:
        """The first work fails with this error. False if there is none that has begun: who waits takes no memory."""
        self.wait()
        self._smallest = None

        def fail(work: BackgroundWork) -> bool:
            if work.begun:
                self._fail(work, error)
            return work.begun

        return bool(self._guard(fail))

    def wait(self) -> None:
        """Until no slice is in flight."""
        while self._flights:
            self._land()

    def _read_finished(self) -> None:
        while self._flights and self._flights[0].timing.done():
            self._land()

    def _land(self) -> None:
        """Wait for the oldest slice, and learn from what it took."""
        flight = self._flights.popleft()
        took, piece = flight.timing.seconds(), flight.piece
        self._estimator.observe(piece.kind, piece.rows, piece.work, took)
        self._owed += took - flight.predicted

    def _seconds(self, piece: Slice) -> float:
        return self._estimator.seconds(piece.kind, piece.rows, piece.work)

    def _guard(self, use: Callable[[BackgroundWork], T]) -> T | None:
        """Use the first work. If that raises, the work has failed and leaves, and serving goes on."""
        while self._works and self._works[0].finished:
            self._works.popleft()
        if not self._works:
            return None
        work = self._works[0]
        try:
            return use(work)
        except Exception as error:
            self._fail(work, error)
            return None

    def _fail(self, work: BackgroundWork, error: Exception) -> None:
        if not isinstance(error, CoserveError):
            log.error("background work failed", exc_info=error)
        if self._works and self._works[0] is work:
            self._works.popleft()
        work.failed(error)
