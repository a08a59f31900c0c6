"""The cost model: bytes and FLOPs to seconds, calibrated by measuring and corrected by what really happened.

The roofline (Williams, Waterman & Patterson, 2009) says that work takes as long as the slower of moving its bytes and
doing its arithmetic. Real chips overlap the two imperfectly, so what is not hidden of the faster one is added:

    seconds = max(b, f) + (1 - overlap) * min(b, f) + overhead
    b = bytes / (bandwidth * efficiency),  f = flops / peak
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a piece of work moves and computes."""

    bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Chip:
    """What the roofline sees of the hardware, for one number format."""

    name: str
    format: str  # of weights and arithmetic, as PyTorch names it; two names where they differ
    bandwidth: float  # bytes/s that a plain streaming read reaches
    flops: float  # FLOP/s that a large matrix product reaches
    efficiency: float = 1.0  # share of the bandwidth that the matrix kernels reach on few rows
    overlap: float = 1.0  # share of the smaller term that hides behind the larger one


@dataclass(frozen=True)
class Roofline:
    """Seconds for work on a chip. `overhead`: seconds of one forward pass that are neither bytes nor FLOPs."""

    chip: Chip
    overhead: float = 0.0

    def seconds(self, work: Work) -> float:
        moving = work.bytes / (self.chip.bandwidth * self.chip.efficiency)
        computing = work.flops / self.chip.flops
        return max(moving, computing) + (1 - self.chip.overlap) * min(moving, computing) + self.overhead

    def mbu(self, work: Work, seconds: float) -> float:
        """Model bandwidth utilisation: the bytes that had to be read, over the time taken and the chip's bandwidth."""
        return work.bytes / seconds / self.chip.bandwidth if seconds > 0 else 0.0


class Correction:
    """Learns measured / predicted, by the number of rows, from what steps took.

    A factor is kept for each power of two of rows and interpolated between those that were seen. Work may take longer
    than it should (another program took the core), but never shorter: an observation counts for at most twice what was
    expected. The first one of a bucket does not count: kernels are loaded then, memory and caches are new.
    """

    RATE = 0.1  # weight of a new observation
    WARMUP = 8  # observations of a bucket that count as a plain mean

    def __init__(self) -> None:
        self._log: dict[int, float] = {}
        self._count: dict[int, int] = {}
        self._errors: deque[float] = deque(maxlen=512)

    def factor(self, rows: int) -> float:
        if not self._log:
            return 1.0
        where = math.log2(max(1, rows))
        below = max((b for b in self._log if b <= where), default=None)
        above = min((b for b in self._log if b >= where), default=None)
        if below is None or above is None:
            return math.exp(self._log[below if below is not None else above])  # type: ignore[index]
        if below == above:
            return math.exp(self._log[below])
        share = (where - below) / (above - below)
        return math.exp((1 - share) * self._log[below] + share * self._log[above])

    def observe(self, rows: int, predicted: float, measured: float) -> None:
        """`predicted`: the corrected prediction that was made for it."""
        if predicted <= 0 or measured <= 0:
            return
        bucket = round(math.log2(max(1, rows)))
        if bucket not in self._count:
            self._count[bucket] = 0
            return
        self._errors.append(abs(predicted / measured - 1))
        current = self._log.get(bucket, math.log(self.factor(rows)))
        seen = math.log(measured / predicted) + math.log(self.factor(rows))
        count = self._count[bucket]
        if self._log:  # else nothing was expected
            seen = min(current + math.log(2), seen)
        rate = max(self.RATE, 1 / (count + 1))
        self._log[bucket] = current + rate * (seen - current)
        self._count[bucket] = min(count + 1, self.WARMUP)

    def __bool__(self) -> bool:
        """Whether anything was learnt yet."""
        return bool(self._log)

    @property
    def median_error(self) -> float:
        """Median of |predicted / measured - 1| over the recent observations."""
        return statistics.median(self._errors) if self._errors else 0.0


class Estimator:
    """Seconds of each kind of work: the roofline's answer, times what this kind has been seen to take of it."""

    def __init__(self, roofline: Roofline):
        self.roofline = roofline
        self.corrections: dict[str, Correction] = {}

    def seconds(self, kind: str, rows: int, work: Work) -> float:
        correction = self.corrections.get(kind)
        return self.roofline.seconds(work) * (correction.factor(rows) if correction else 1.0)

    def observe(self, kind: str, rows: int, work: Work, measured: float) -> None:
        self.corrections.setdefault(kind, Correction()).observe(rows, self.seconds(kind, rows, work), measured)
