"""How kernels round what is in registers to 8 bits, integers or floats, with one scale."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def levels(dtype: torch.dtype) -> float:
    """What the largest element of an `int8` or an 8-bit float format becomes."""
    return torch.finfo(dtype).max if dtype.is_floating_point else 127.0


@triton.jit
def scale_of(x, LEVELS: tl.constexpr):
    """The scale of all elements. NaN if any is: integers could not say so."""
    top = tl.max(tl.abs(x))
    top = tl.where(tl.max((x != x).to(tl.int32)) > 0, float("nan"), top)
    return tl.where(top == 0, 1.0, top / LEVELS)


@triton.jit
def rounded(x, scale, dtype: tl.constexpr):
    """x / scale, integers to the nearest (halves upwards)."""
    x = x / scale
    if dtype == tl.int8:
        x = tl.floor(x + 0.5)
    return x.to(dtype)
