"""Dropout whose choice follows from a seed and an element's place, so that nothing is kept for the backward."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 1024  # of one program


def dropout(x: Tensor, p: float, seed: int, first_row: int) -> Tensor:
    """x [rows, n] -> zero with probability `p`, else x / (1 - p); by the seed, the row's number and the column.

    The first row has the number `first_row`.
    """
    x = x.contiguous()
    out, elements = x.new_empty(x.shape), x.numel()
    if elements:
        grid = (triton.cdiv(elements, _ELEMENTS),)
        _dropout[grid](x, out, p, seed, first_row * x.shape[1], elements, ELEMENTS=_ELEMENTS)
    return out


@triton.jit(do_not_specialize=["seed", "first", "elements"])
def _dropout(x, out, p, seed, first, elements, ELEMENTS: tl.constexpr):
    """Grid: runs of elements. Random numbers by Philox (Salmon et al., 2011), which counts instead of going on."""
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    mask = at < elements
    values = tl.load(x + at, mask=mask, other=0.0)
    kept = tl.rand(seed, (first + at).to(tl.int32)) >= p
    scaled = values.to(tl.float32) / (1 - p)
    tl.store(out + at, tl.where(kept, scaled, 0.0).to(values.dtype), mask=mask)
