"""The cost model: bytes and FLOPs to seconds, calibrated by measuring and corrected by what really happened.

The roofline (Williams, Waterman & Patterson, 2009) says that work takes as long as the slower of moving its bytes and
doing its arithmetic. Real chips overlap the two imperfectly, so what is not hidden of the faster one is added:

    seconds = max(b, f) + (1 - overlap) * min(b, f) + overhead
    b = bytes / (bandwidth * efficiency),  f = flops / peak
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from coserve.kernels.native import library

Format = str  # "bfloat16" or "float32", as PyTorch names them


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
    format: Format
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

    A factor is kept for each power of two of rows and interpolated between those that were seen. Single outliers
    (another program took the core) move it little: each observation counts for at most a factor of two.
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
        self._errors.append(abs(predicted / measured - 1))
        bucket = round(math.log2(max(1, rows)))
        current = self._log.get(bucket, math.log(self.factor(rows)))
        seen = math.log(measured / predicted) + math.log(self.factor(rows))
        count = self._count.get(bucket, 0)
        if count:
            seen = max(current - math.log(2), min(current + math.log(2), seen))
        rate = max(self.RATE, 1 / (count + 1))
        self._log[bucket] = current + rate * (seen - current)
        self._count[bucket] = min(count + 1, self.WARMUP)

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


def _best(run: Callable[[], object], seconds: float = 0.15, least: int = 3) -> float:
    """Shortest time of repeated runs: what the chip can do when nothing else disturbs it."""
    best, start, runs = math.inf, time.perf_counter(), 0
    while runs < least or time.perf_counter() - start < seconds:
        t = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - t)
        runs += 1
    return best


def measure_bandwidth(megabytes: int = 256) -> float:
    """Bytes/s of a streaming read by all of PyTorch's threads, from a buffer too large for any cache."""
    buffer = torch.ones(megabytes << 17, dtype=torch.int64)
    lib = library()
    if lib is None:
        return buffer.nbytes / _best(lambda: buffer.sum())
    import ctypes

    lib.coserve_stream_read.restype = ctypes.c_uint64
    pointer, words = ctypes.c_void_p(buffer.data_ptr()), ctypes.c_int64(buffer.numel())
    return buffer.nbytes / _best(lambda: lib.coserve_stream_read(pointer, words))


def measure_chip(dtype: torch.dtype) -> Chip:
    """Measure this machine in about a second: bandwidth, matrix FLOP/s, and how well the two overlap."""
    bandwidth = measure_bandwidth()
    with torch.inference_mode():
        a = torch.randn(1024, 2048).to(dtype)
        square = torch.randn(2048, 2048).to(dtype)
        flops = 2 * 1024 * 2048 * 2048 / _best(lambda: F.linear(a, square))
        weights = [torch.randn(4096, 2048).to(dtype) for _ in range(96 // (16 * dtype.itemsize // 2))]
        volume = sum(w.nbytes for w in weights)

        def pass_over(rows: int) -> float:
            x = torch.randn(rows, 2048).to(dtype)
            return _best(lambda: [F.linear(x, w) for w in weights])

        moving, mixed, rows = pass_over(1), pass_over(32), 32
    efficiency = min(1.0, volume / moving / bandwidth)
    computing = 2 * rows * volume / dtype.itemsize / flops
    hidden = (moving + computing - mixed) / min(moving, computing)
    name = f"{platform.processor() or platform.machine()} ({torch.get_num_threads()} threads)"
    return Chip(
        _cpu_name() or name,
        str(dtype).removeprefix("torch."),
        bandwidth,
        flops,
        efficiency,
        min(1.0, max(0.0, hidden)),
    )


def _cpu_name() -> str:
    """The processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model}, {torch.get_num_threads()} threads" if model else ""


def load_or_measure_chip(cache: Path | None, dtype: torch.dtype) -> Chip:
    """The chip as measured on an earlier start of the same machine and PyTorch, else measured now and kept."""
    if cache is None:
        return measure_chip(dtype)
    key = f"{_cpu_name()}|{torch.get_num_threads()}|{torch.__version__}|{dtype}|{library() is not None}"
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if isinstance(known.get(key), dict):
        try:
            return Chip(**known[key])
        except TypeError:
            pass  # written by another version
    chip = measure_chip(dtype)
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = cache.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({**known, key: asdict(chip)}, indent=1))
    part.replace(cache)
    return chip
