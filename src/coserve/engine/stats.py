"""What the engine counts about itself: totals, latency histograms, and a short memory for percentiles."""

from __future__ import annotations

import bisect
import time
from collections import deque
from dataclasses import dataclass

TTFT_BOUNDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
ITL_BOUNDS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4, 1.0, 4.0)
_RECENT_SECONDS = 60.0


@dataclass(frozen=True)
class Histogram:
    """counts[i] observations were at most bounds[i] (and above bounds[i-1]); the last count has no bound."""

    bounds: tuple[float, ...]  # seconds
    counts: tuple[int, ...]
    sum: float

    def quantile(self, q: float) -> float | None:
        """The bound under which a share `q` of the observations lies; None without observations."""
        total = sum(self.counts)
        if not total:
            return None
        seen = 0
        for bound, count in zip((*self.bounds, self.bounds[-1]), self.counts, strict=True):
            seen += count
            if seen >= q * total:
                return bound
        return self.bounds[-1]


@dataclass(frozen=True)
class EngineStats:
    """A snapshot. Totals are since the engine's start; seconds unless said."""

    chip: str
    chip_bandwidth: float  # bytes/s
    chip_flops: float
    asleep: bool
    requests_running: int
    requests_waiting: int  # without the parked
    requests_parked: int  # gave their seat to a higher priority, and keep their KV blocks
    requests_finished: int
    requests_cancelled: int
    requests_expired: int  # waited as long as they would
    prompt_tokens: int
    output_tokens: int
    training_tokens: int
    steps: int
    inference_seconds: float
    training_seconds: float
    idle_seconds: float
    kv_blocks_used: int
    kv_blocks_total: int
    preemptions: int
    mbu: float
    predicted_step_seconds: float
    measured_step_seconds: float
    step_error_median: float
    ttft: Histogram
    itl: Histogram
    recent_ttft_p50: float | None
    recent_ttft_p99: float | None
    recent_itl_p50: float | None
    recent_itl_p99: float | None


class Latency:
    """A histogram since the start, and the observations of the last minute."""

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=8192)

    def observe(self, seconds: float, now: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds
        self._recent.append((now, seconds))

    def histogram(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._sum)

    def recent(self, *quantiles: float) -> list[float | None]:
        """Exact quantiles of the last minute (of at most 8192 observations)."""
        since = time.perf_counter() - _RECENT_SECONDS
        values = sorted(seconds for when, seconds in list(self._recent) if when >= since)
        return [values[min(len(values) - 1, int(q * len(values)))] if values else None for q in quantiles]


class Counters:
    """The running totals; written by the engine's thread alone."""

    def __init__(self) -> None:
        self.finished = self.cancelled = self.expired = 0
        self.prompt_tokens = self.output_tokens = self.training_tokens = 0
        self.steps = self.preemptions = 0
        self.inference_seconds = self.training_seconds = self.idle_seconds = 0.0
        self.mbu = self.predicted = self.measured = 0.0
        self.ttft, self.itl = Latency(TTFT_BOUNDS), Latency(ITL_BOUNDS)
