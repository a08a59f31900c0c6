"""The compiled CPU kernels (`*.cpp`), loaded with ctypes.

`COSERVE_NATIVE=0` turns them off: everything then runs on PyTorch's own ops. `plain`, `avx2` or `avx512` there keeps
them to that level of instructions; else they take all that the processor has.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os

import torch

log = logging.getLogger(__name__)

PACKING = 3  # of how matrices are packed and rounded: another one, and files of them are made again
LEVELS = ("plain", "avx2", "avx512", "amx")  # as level.h has them


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built, or from sources that packed matrices in another way. PyTorch is
    loaded first: its threads are the ones used.

    Raises `ValueError` for a COSERVE_NATIVE that says nothing.
    """
    asked = os.environ.get("COSERVE_NATIVE") or "1"
    if asked not in ("0", "1", *LEVELS):
        raise ValueError(f"COSERVE_NATIVE is {asked!r}; it must be 0, 1, {', '.join(LEVELS)}")
    if asked == "0":
        return None
    spec = importlib.util.find_spec("coserve.kernels._native")
    if spec is None or spec.origin is None:
        return None
    try:
        kernels = ctypes.CDLL(spec.origin)
    except OSError:  # e.g. a PyTorch without OpenMP, whose threads the library expects
        return None
    if hasattr(kernels, "coserve_packing") and kernels.coserve_packing() == PACKING:
        return kernels
    log.warning("the CPU kernels in %s are of other sources, and left out: build them again", spec.origin)
    return None


@functools.cache
def kernel(name: str, dtype: torch.dtype):
    """The exported function for an element type, or None."""
    suffix = {torch.float32: "f32", torch.bfloat16: "bf16"}.get(dtype)
    lib = library()
    return getattr(lib, f"coserve_{name}_{suffix}") if lib is not None and suffix else None


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the kernels multiply bfloat16 rows with bfloat16 weights as they are, which takes AVX-512's or AMX's
    instructions for it. Ask before calling `coserve_linear_bf16_rows`."""
    lib = library()
    return lib is not None and bool(lib.coserve_multiplies_bfloat16())


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """What a kernel takes for a tensor, or for none."""
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def build() -> str:
    """Tells one build of the kernels from another, and the instructions that they take; empty without them."""
    lib = library()
    return "" if lib is None else f"{int(os.path.getmtime(lib._name))} {LEVELS[lib.coserve_level()]}"
