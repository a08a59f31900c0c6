"""Products of few rows with a matrix: of floats, or of 8- or 4-bit elements that are widened in registers.

Reading the matrix is what such a product takes. Each program reads a tile of its rows along a part of the columns;
groups are multiplied by their scale after their products have been summed, so that integers go into the tensor cores
as they are: they are exact in bfloat16. How columns are split over programs follows from the matrix alone; a row of
the result depends on neither the number of rows nor its place among them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.formats import HALF, QuantizedRows

_OUTPUTS = 32  # rows of the matrix in a tile
_MOST_COLUMNS = 128  # of a tile
_PROGRAMS = 512  # enough to keep a large GPU reading
_MOST_SPLITS = 8
_LEAST_STEPS = 4  # tiles of a split
_WIDENED = 1024  # columns of one row, for one program
_HALF = tl.constexpr(HALF)


def product(x: Tensor, weight: Tensor | QuantizedRows, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] float, weight [out, in] -> x @ weight.T + bias [rows, out] in x's format.

    Meant for up to some 64 rows; the matrix is read once for each 32 of them.
    """
    rows, (outputs, columns) = x.shape[0], weight.shape
    if not rows:
        return x.new_empty(0, outputs)
    matrix: tuple[Tensor, Tensor | None, Tensor | None]
    if isinstance(weight, Tensor):
        matrix, group, step = (weight.contiguous(), None, None), columns, _MOST_COLUMNS
        bits = 8 * weight.itemsize
    else:
        matrix, group, step = (weight.data, weight.scales, weight.mins), weight.group, _tile_columns(weight)
        bits = weight.bits
    splits, length = _splits(outputs, columns, step)
    out = x.new_empty(rows, outputs)
    partial = out if splits == 1 else x.new_empty(splits, rows, outputs, dtype=torch.float32)
    tile_rows = 16 if rows <= 16 else 32
    _product[(triton.cdiv(rows, tile_rows), triton.cdiv(outputs, _OUTPUTS), splits)](
        x.contiguous(),
        *matrix,
        bias if splits == 1 else None,
        partial,
        rows,
        outputs,
        columns,
        group,
        length,
        BITS=bits,
        ROWS=tile_rows,
        OUTPUTS=_OUTPUTS,
        COLUMNS=step,
        ONE_SCALE=group % (2 * HALF) == 0 or group >= columns,
        num_warps=4,
        num_stages=4,
    )
    if splits > 1:
        _sum_splits[(rows, triton.cdiv(outputs, 1024))](partial, bias, out, outputs, SPLITS=splits, OUTPUTS=1024)
    return out


def many_rows_product(x: Tensor, weight: QuantizedRows, bias: Tensor | None = None) -> Tensor:
    """The same of so many rows that arithmetic counts: widened first, then PyTorch's product, in its own order."""
    return F.linear(x, dequantize(weight, x.dtype), bias)


def dequantize(weight: QuantizedRows, dtype: torch.dtype) -> Tensor:
    """The matrix [out, in], in one pass; for gradients, too."""
    outputs, columns = weight.shape
    out = torch.empty(outputs, columns, dtype=dtype, device=weight.data.device)
    _dequantize[(outputs, triton.cdiv(columns, _WIDENED))](
        weight.data,
        weight.scales,
        weight.mins,
        out,
        outputs,
        columns,
        weight.data.shape[1],
        weight.group,
        BITS=weight.bits,
        COLUMNS=_WIDENED,
    )
    return out


def _tile_columns(weight: QuantizedRows) -> int:
    """As many as share a scale; two scales in 4 bits, if a group has an odd number of halves."""
    if weight.group >= weight.shape[1]:
        return _MOST_COLUMNS
    power = weight.group & -weight.group  # the largest power of two in it
    return min(_MOST_COLUMNS, max(power, HALF if weight.bits == 8 else 2 * HALF))


def _splits(outputs: int, columns: int, step: int) -> tuple[int, int]:
    """Into how many parts a matrix's columns are cut, and how many columns each has."""
    steps = triton.cdiv(columns, step)
    wanted = min(_MOST_SPLITS, _PROGRAMS // triton.cdiv(outputs, _OUTPUTS), steps // _LEAST_STEPS)
    length = triton.cdiv(steps, max(1, wanted))
    return triton.cdiv(steps, length), length * step


@triton.jit(do_not_specialize=["rows"])
def _product(
    x,
    data,
    scales,
    mins,
    bias,
    out,
    rows,
    outputs,
    columns,
    group,
    length,  # columns of a split
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ONE_SCALE: tl.constexpr,
):
    """Grid: tiles of rows, tiles of outputs, splits."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    split = tl.program_id(2)
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(split * length, tl.minimum(columns, (split + 1) * length), COLUMNS):
        if BITS > 4:
            column = first + tl.arange(0, COLUMNS)
            width = tl.cdiv(columns, _HALF) * _HALF if scales is not None else columns
            q = _tile(data, output, column, outputs, width)
            acc += _scaled(x, q, scales, mins, row, output, column, first // group, rows, outputs, columns)
        else:
            at = tl.arange(0, COLUMNS // 2)
            width = tl.cdiv(columns, 2 * _HALF) * _HALF
            q = _tile(data, output, first // 2 + at, outputs, width)
            low, high = (q & 15).to(tl.int8), (q >> 4).to(tl.int8)
            if mins is None:
                low, high = low - 8, high - 8
            column = first + at // _HALF * (2 * _HALF) + at % _HALF
            above = first // group if ONE_SCALE else tl.minimum(first + _HALF, columns - 1) // group
            acc += _scaled(x, low, scales, mins, row, output, column, first // group, rows, outputs, columns)
            acc += _scaled(x, high, scales, mins, row, output, column + _HALF, above, rows, outputs, columns)
    mask = (row < rows)[:, None] & (output < outputs)[None, :]
    if bias is not None:
        acc += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    place = (split * rows + row).to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _tile(data, output, place, outputs, width):
    """Elements [OUTPUTS, n] of the matrix at `place` in its rows; zeros behind them."""
    mask = (output < outputs)[:, None] & (place < width)[None, :]
    return tl.load(data + output.to(tl.int64)[:, None] * width + place[None, :], mask=mask, other=0.0)


@triton.jit
def _scaled(x, q, scales, mins, row, output, column, group, rows, outputs, columns):
    """x [rows, n] times elements [OUTPUTS, n] of one group, with its scales and mins: float32 [rows, OUTPUTS]."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    part = tl.load(x + row.to(tl.int64)[:, None] * columns + column[None, :], mask=mask, other=0.0)
    inside = output < outputs
    result = tl.dot(part, tl.trans(q.to(part.dtype)), input_precision="ieee")
    if scales is not None:
        scale = tl.load(scales + group * outputs + output, mask=inside, other=0.0).to(tl.float32)
        result *= scale[None, :]
    if mins is not None:
        least = tl.load(mins + group * outputs + output, mask=inside, other=0.0).to(tl.float32)
        result += tl.sum(part.to(tl.float32), 1)[:, None] * least[None, :]
    return result


@triton.jit
def _sum_splits(partial, bias, out, outputs, SPLITS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Grid: rows, parts of a row."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    mask = output < outputs
    total = tl.zeros([OUTPUTS], tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + (split * rows + row) * outputs + output, mask=mask, other=0.0)
    if bias is not None:
        total += tl.load(bias + output, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + output, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _dequantize(data, scales, mins, out, outputs, columns, width, group, BITS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid: rows, parts of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < columns
    if BITS == 8:
        q = tl.load(data + row * width + column, mask=mask, other=0.0).to(tl.float32)
    else:
        pair = column % (2 * _HALF)
        byte = tl.load(data + row * width + column // (2 * _HALF) * _HALF + pair % _HALF, mask=mask, other=0)
        q = tl.where(pair < _HALF, byte & 15, byte >> 4).to(tl.float32)
        if mins is None:
            q -= 8
    at = column // group * outputs + row
    q *= tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)
    if mins is not None:
        q += tl.load(mins + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, q.to(out.dtype.element_ty), mask=mask)
