"""How long work takes, on a CPU that computes when it is called, and on a GPU that computes later.

A GPU's work is launched and goes on by itself, in the order of its stream. Two events in that stream, one before the
work and one behind it, tell what it took; reading them later costs nothing, waiting for them at once would empty the
GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Timing(Protocol):
    """What a piece of work took, as soon as it is done."""

    def done(self) -> bool: ...

    def seconds(self) -> float:
        """Waits until the work is done."""


class Clock(Protocol):
    """Runs work and times it. `most_in_flight`: pieces of work that may be launched and not done at a time."""

    most_in_flight: int

    def time(self, run: Callable[[], object]) -> Timing: ...


@dataclass(frozen=True)
class _Took:
    took: float

    def done(self) -> bool:
        return True

    def seconds(self) -> float:
        return self.took


class CpuClock:
    """Work is done when the call returns."""

    most_in_flight = 1

    def time(self, run: Callable[[], object]) -> Timing:
        started = time.perf_counter()
        run()
        return _Took(time.perf_counter() - started)


@dataclass(frozen=True)
class _Between:
    """The time between two events of one stream."""

    start: Any
    end: Any

    def done(self) -> bool:
        return bool(self.end.query())

    def seconds(self) -> float:
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1e3


class GpuClock:
    """Work is launched on PyTorch's current stream and timed by events there: while a piece runs the next is launched.

    `event` makes an event that keeps the time.
    """

    most_in_flight = 2

    def __init__(self, event: Callable[[], Any] | None = None):
        self._event = event or (lambda: torch.cuda.Event(enable_timing=True))

    def time(self, run: Callable[[], object]) -> Timing:
        start, end = self._event(), self._event()
        start.record()
        run()
        end.record()
        return _Between(start, end)


class Readback:
    """Numbers on their way from a device to the CPU; nobody waits for them until they are read."""

    def __init__(self, numbers: torch.Tensor):
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers.detach()
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def ready(self) -> bool:
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        values: list[float] = self._numbers.tolist()
        return values
