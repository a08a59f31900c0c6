"""The machine's memory, as far as kernels care: pages, caches, and what is kept of what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_MALLOPT_TRIM_THRESHOLD, _MALLOPT_MMAP_MAX = -1, -4  # malloc.h


def map_file(file: BinaryIO) -> Tensor:
    """A file's bytes, uint8. Writing to them does not change it. Raises `OSError`, and `ValueError` if it is empty."""
    return _in_huge_pages(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def huge_copy(tensor: Tensor) -> Tensor:
    """A copy in huge pages. Reading one with small pages takes a third longer: each needs its address looked up."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    room = _in_huge_pages(mmap.mmap(-1, max(1, tensor.nbytes), **private))[: tensor.nbytes]
    return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _in_huge_pages(mapping: mmap.mmap) -> Tensor:
    """The mapping's bytes; in huge pages, where the kernel has them (in its cache, if it is a file's)."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)


def beyond_caches() -> int:
    """Bytes that no cache holds half of, for measuring the memory itself: 96 MB to 1 GB."""
    sizes = [0]
    for size in _CACHES.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = size.read_text().strip()
            sizes.append(int(text[:-1]) * _UNITS[text[-1]])
    return min(1 << 30, max(96_000_000, 2 * max(sizes)))


def available_memory() -> int:
    """Bytes of the machine's memory that are free for use."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 8 << 30


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next allocation, of any size: a step's activations are as large as
    the last one's, and new pages cost more than what is computed in them. For the whole process; glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MALLOPT_MMAP_MAX, 0)
        mallopt(_MALLOPT_TRIM_THRESHOLD, 2**31 - 1)
