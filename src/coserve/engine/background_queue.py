"""The queue of background work: the first one's slices run in the slack, and trouble of its own ends nothing else."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from coserve.engine.background import BackgroundWork, Slice
from coserve.engine.batch import Ride
from coserve.errors import CoserveError
from coserve.roofline import Estimator

log = logging.getLogger(__name__)
T = TypeVar("T")


class BackgroundQueue:
    """Works run one at a time, in order. One that is finished or fails leaves. For the engine's thread alone."""

    def __init__(self, estimator: Estimator):
        self._estimator = estimator
        self._works: deque[BackgroundWork] = deque()
        self._smallest: float | None = None

    def __bool__(self) -> bool:
        return bool(self._works)

    def add(self, work: BackgroundWork) -> None:
        self._works.append(work)

    def ride(self, max_rows: int) -> Ride | None:
        """At most `max_rows` tokens that could go along in the next batch."""
        return self._guard(lambda work: work.ride(max_rows)) if max_rows else None

    def rode(self, ride: Ride) -> None:
        """The batch with these tokens in it has been computed."""
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

    def run(self, seconds: float, *, at_least_one: bool = False) -> float:
        """Run the next slice if it should fit into `seconds`; returns what it took, 0 if none ran."""
        self._smallest = None
        piece = self._guard(lambda work: work.next_slice(seconds))
        if piece is None or not (at_least_one or self._seconds(piece) <= seconds):
            return 0.0
        started = time.perf_counter()
        self._guard(lambda _: piece.run())
        took = time.perf_counter() - started
        self._estimator.observe(piece.kind, piece.rows, piece.work, took)
        return took

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
            if not isinstance(error, CoserveError):
                log.exception("background work failed")
            if self._works and self._works[0] is work:
                self._works.popleft()
            work.failed(error)
            return None
