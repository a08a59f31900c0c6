"""The machine's memory, as far as kernels care: pages, caches, and what is kept of what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_CPUS = Path("/sys/devices/system/cpu")
_NO_MEMORY = ("out of memory", "ALLOC_FAILED")  # of CUDA, HIP and Triton; of cuBLAS
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


def map_file(file: BinaryIO) -> Tensor:
    """A file's bytes, uint8. Writing to them does not change it. Raises `OSError`, and `ValueError` if it is empty."""
    return _in_huge_pages(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def huge_empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory in huge pages. Reading it in small ones takes a third longer: each needs its address looked up."""
    size = math.prod(shape) * dtype.itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    room = _in_huge_pages(mmap.mmap(-1, max(1, size), **private))[:size]
    return room.view(dtype).view(tuple(shape))


def huge_copy(tensor: Tensor) -> Tensor:
    return huge_empty(tensor.shape, tensor.dtype).copy_(tensor)


def _in_huge_pages(mapping: mmap.mmap) -> Tensor:
    """The mapping's bytes; in huge pages, where the kernel has them (in its cache, if it is a file's)."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)


def beyond_caches() -> int:
    """Bytes that no cache holds half of, for measuring the memory itself: at least 96 MB, at most 1 GB or an eighth of
    what is free."""
    wanted = max(96_000_000, 2 * _cache_bytes())
    return min(wanted, 1 << 30, max(96_000_000, available_memory() // 8))


def _cache_bytes() -> int:
    """Of all caches of the last level of the processors that this process may run on."""
    found: dict[str, int] = {}
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            last = max(
                (_CPUS / f"cpu{cpu}" / "cache").glob("index*"), key=lambda index: int((index / "level").read_text())
            )
            size = (last / "size").read_text().strip()
            found[(last / "shared_cpu_list").read_text()] = int(size[:-1]) * _UNITS[size[-1]]
    return sum(found.values())


def available_memory() -> int:
    """Bytes of the machine's memory that are free for use."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 8 << 30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no memory for PyTorch, or for what it calls: the driver, a library, Triton."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(told in str(error) for told in _NO_MEMORY)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for later allocations: a step's activations are as large as the last one's,
    and new pages cost more than what is computed in them.

    For the whole process, and for threads that start afterwards; glibc only. The process keeps the most that it ever
    needed, some of it in holes: several times the activations of the longest step.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # a thread's own arena maps and unmaps whatever is larger than 64 MB
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
