"""8-bit floats on both sides of a product of many rows: each row rounded by itself, PyTorch's scaled matrix product.

Half the bytes of bfloat16 and twice its rate on the tensor cores that have them (NVIDIA from Ada and Hopper on, AMD
from MI350 on). Few rows, and matrices with a scale for each block, keep their rows in bfloat16: `products.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.eight_bits import levels, rounded, scale_of
from coserve.kernels.gpu.formats import FP8, FP8_MULTIPLE, QuantizedRows


def takes(x: Tensor, weight: QuantizedRows) -> bool:
    """Whether `product` multiplies them: float32 rows, say, are not to be rounded to 8 bits."""
    return (
        x.dtype == torch.bfloat16
        and weight.name == "float8"
        and not weight.grouped
        and not weight.shape[0] % FP8_MULTIPLE
    )


def product(x: Tensor, weight: QuantizedRows, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] @ weight.T + bias, bfloat16 [rows, out]. See `takes`."""
    q, scales = quantize_rows(x, weight)
    return torch._scaled_mm(
        q,
        weight.data.t(),
        scale_a=scales.unsqueeze(1),
        scale_b=weight.scales,
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,  # the only one that scales by row give
    )


def quantize_rows(x: Tensor, weight: QuantizedRows) -> tuple[Tensor, Tensor]:
    """x [rows, in] -> 8-bit floats [rows, in], shuffled and padded as the matrix's are; their scales float32 [rows].

    A row with NaN gets NaN for its scale.
    """
    x, width = x.contiguous(), weight.data.shape[1]
    out = torch.empty(x.shape[0], width, dtype=FP8, device=x.device)
    scales = x.new_empty(x.shape[0], dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    _quantize_rows[(x.shape[0],)](
        x,
        out,
        scales,
        x.shape[1],
        width,
        LEVELS=levels(FP8),
        SLICE=weight.slice,
        COLUMNS=columns,
        num_warps=min(16, max(1, columns // 512)),
    )
    return out, scales


@triton.jit
def _quantize_rows(x, out, scales, n, width, LEVELS: tl.constexpr, SLICE: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid: rows."""
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    column = place // (2 * SLICE) * (2 * SLICE) + place % 2 * SLICE + place // 2 % SLICE
    values = tl.load(x + row * n + column, mask=column < n, other=0.0).to(tl.float32)
    scale = scale_of(values, LEVELS)
    tl.store(scales + row, scale)
    tl.store(out + row * width + place, rounded(values, scale, out.dtype.element_ty), mask=place < width)
