"""How kernels round what is in registers to 8-bit floats, with one scale."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def levels(dtype: torch.dtype) -> float:
    """What the largest element of an 8-bit float format becomes."""
    return torch.finfo(dtype).max


@triton.jit
def scale_of(x, LEVELS: tl.constexpr):
    """The scale of all elements. NaN if any is."""
    top = tl.max(tl.abs(x))
    top = tl.where(tl.max((x != x).to(tl.int32)) > 0, float("nan"), top)
    return tl.where(top == 0, 1.0, top / LEVELS)


@triton.jit
def rounded(x, scale, dtype: tl.constexpr):
    """x / scale, to the nearest."""
    return (x / scale).to(dtype)
