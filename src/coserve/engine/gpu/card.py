"""What the runner asks of a GPU besides its kernels: pinned memory, events, captured graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

T = TypeVar("T")


class Mark(Protocol):
    def wait(self) -> None:
        """Until the GPU has come to it."""

    def seconds_since(self, earlier: Mark) -> float:
        """How long the GPU took from there to here; both were reached."""


class Pool(Protocol):
    """Memory that captured launches share, since one of them runs at a time. It is given back with the last of them."""

    def capture(self, launches: Callable[[], T]) -> Callable[[], T]:
        """Record launches, whose kernels have run before, without running them -> one launch of all of them.

        What that returns is there until any launch that was captured into this pool.
        """


class Card(Protocol):
    """A GPU, or in tests what stands in for one."""

    device: torch.device

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of the CPU that the GPU copies from and to by itself."""

    def mark(self) -> Mark:
        """A point in what is launched: behind all that was launched up to now."""

    def pool(self) -> Pool:
        """One with nothing in it."""

    def give_back(self) -> None:
        """Memory that was freed, and is kept for the next tensors."""


class Cuda:
    """A GPU of PyTorch's "cuda": NVIDIA's, or AMD's.

    From here on, what this thread launches goes to a stream of high priority.
    """

    def __init__(self, device: torch.device):
        self.device = device
        torch.cuda.set_device(device)
        torch.cuda.synchronize()  # what other streams have begun is there for the new one
        torch.cuda.set_stream(torch.cuda.Stream(priority=-1))

    def host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def mark(self) -> _Event:
        return _Event()

    def pool(self) -> GraphPool:
        return GraphPool()

    def give_back(self) -> None:
        torch.cuda.empty_cache()


class GraphPool:
    """A pool of PyTorch's. One ends with the last of its graphs and takes none again: then another one begins."""

    def __init__(self) -> None:
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._handle: Any = None

    def capture(self, launches: Callable[[], T]) -> Callable[[], T]:
        graph = torch.cuda.CUDAGraph()
        if not self._graphs:
            self._handle = torch.cuda.graph_pool_handle()
        # Not `torch.cuda.graph`, which waits for the GPU first. Other threads may go on using it.
        graph.capture_begin(pool=self._handle, capture_error_mode="thread_local")
        try:
            result = launches()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what ended the capture says more
                graph.capture_end()
            raise
        graph.capture_end()
        self._graphs.add(graph)

        def replay() -> T:
            graph.replay()
            return result

        return replay


class _Event:
    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Event)
        return float(earlier._event.elapsed_time(self._event)) / 1e3
