"""When a model that is served here as well goes elsewhere: when its first token would come too late."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coserve.engine import EngineStats

LOOK = 0.1
"""Seconds for which a look at the engine is good enough."""
_WEIGHT = 0.3


class Overflow:
    """Predicts the time to first token of a request that would join the engine's queue now:

        running mean of TTFT x (1 + waiting / running)

    The mean is of what the engine measured between two looks, so it has the queue of late in it; the factor is
    what the queue is now: requests that run make room for as many in about the time that one takes to begin. What was
    let in since the last look counts as waiting. Nothing measured, nobody waiting: no wait. `clock` gives seconds.
    """

    def __init__(self, stats: Callable[[], EngineStats], clock: Callable[[], float] = time.monotonic):
        self._stats = stats
        self._clock = clock
        self._looked_at = float("-inf")
        self._sum, self._count = 0.0, 0
        self._mean: float | None = None
        self._waiting = self._running = 0

    def keeps(self, goal: float) -> bool:
        """Whether a request that is let in now gets its first token within so many seconds; if so, it counts as in."""
        self._look()
        if self.predicted > goal:
            return False
        self._waiting += 1
        return True

    @property
    def predicted(self) -> float:
        """Seconds."""
        return (self._mean or 0.0) * (1 + self._waiting / max(1, self._running))

    def _look(self) -> None:
        if self._clock() < self._looked_at + LOOK:
            return
        self._looked_at = self._clock()
        stats = self._stats()
        self._waiting, self._running = stats.requests_waiting, stats.requests_running
        total, count = stats.ttft.sum, sum(stats.ttft.counts)
        if count > self._count:
            fresh = (total - self._sum) / (count - self._count)
            self._mean = fresh if self._mean is None else self._mean + _WEIGHT * (fresh - self._mean)
        elif not self._waiting and not self._running:
            self._mean = None  # an idle engine is as fast as it can be
        self._sum, self._count = total, count
