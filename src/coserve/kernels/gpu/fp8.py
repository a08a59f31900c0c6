"""Products in 8-bit floats: rows and matrix both, each row with a scale, through PyTorch's scaled matrix product.

Half the bytes of bfloat16 and twice its rate on the tensor cores that have them (NVIDIA from Ada and Hopper on, AMD
from MI300 on). Matrices with a scale for each block are `QuantizedRows`, whose product keeps the rows in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.eight_bits import levels, rounded, scale_of

_MULTIPLE = 16  # of a matrix's rows and columns, for PyTorch's product


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """A matrix [out, in] in 8-bit floats; a row's elements are multiplied by its scale, float32 [out]."""

    data: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> Fp8Weight:
        """Raises `ValueError` for a matrix whose rows or columns are no multiple of 16."""
        if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
            raise ValueError(f"a matrix {list(weight.shape)} in 8-bit floats: both must be multiples of {_MULTIPLE}")
        return cls(*quantize_rows(weight, dtype))

    @property
    def shape(self) -> torch.Size:
        return self.data.shape


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [rows, n] -> elements in `dtype` (8-bit floats or `torch.int8`) and their scales float32 [rows].

    A row with NaN gets NaN for its scale.
    """
    x, out = x.contiguous(), torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    scales = x.new_empty(x.shape[0], dtype=torch.float32)
    columns = triton.next_power_of_2(x.shape[1])
    warps = min(16, max(1, columns // 512))
    _quantize_rows[(x.shape[0],)](x, out, scales, x.shape[1], LEVELS=levels(dtype), COLUMNS=columns, num_warps=warps)
    return out, scales


def linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] @ weight.T + bias [rows, out] in x's format; each row is rounded to 8 bits by itself."""
    if not x.shape[0]:
        return x.new_empty(0, weight.shape[0])
    return product(*quantize_rows(x, weight.data.dtype), weight, bias).to(x.dtype)


def product(q: Tensor, scales: Tensor, weight: Fp8Weight, bias: Tensor | None = None) -> Tensor:
    """`linear` of rows that are rounded already, by `quantize_rows` or `rms_norm_quantized`: bfloat16 [rows, out]."""
    return torch._scaled_mm(
        q,
        weight.data.t(),
        scale_a=scales.unsqueeze(1),
        scale_b=weight.scales.unsqueeze(0),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,  # the only one that scales by row give
    )


@triton.jit
def _quantize_rows(x, out, scales, n, LEVELS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid: rows."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    mask = column < n
    values = tl.load(x + row * n + column, mask=mask, other=0.0).to(tl.float32)
    scale = scale_of(values, LEVELS)
    tl.store(scales + row, scale)
    tl.store(out + row * n + column, rounded(values, scale, out.dtype.element_ty), mask=mask)
