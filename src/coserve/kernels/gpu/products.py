"""Products with a matrix of floats, or of 8- or 4-bit elements: few rows by a kernel, many by PyTorch's product.

Reading the matrix is what a product of few rows takes. Each program reads a tile of its rows along a part of the
columns, once for all rows, and multiplies it as the first operand, which tensor cores take from registers: there packed
elements are widened, to bfloat16, exactly. Groups are multiplied by their scale after their products have been summed.

How columns are split over programs, and in what order they are summed, follows from the matrix alone; a row of the
result depends on neither the number of rows nor its place among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu import fp8
from coserve.kernels.gpu.arrivals import counters, last_to_arrive
from coserve.kernels.gpu.formats import QuantizedRows
from coserve.kernels.gpu.rows import activated, silu_and_mul
from coserve.kernels.gpu.target import await_earlier, backend, capability, early, let_next, one_order
from coserve.kernels.gpu.widening import widened

FEW_ROWS, FEW_PACKED_ROWS = 16, 64  # of a matrix of floats, of packed elements: up to so many our kernel is faster
# How many programs keep a large GPU reading: where there are fewer tiles, columns are split.
_PROGRAMS = {"float": 264, "int8": 396, "float8": 396, "int4": 528}
_MOST_SPLITS = 8
_LEAST_SPLIT = 512  # bytes of a row
_WIDENED = 1024  # columns of one row, for one program
_WHOLE_ROWS = 1 << 30  # columns of a group: one kernel for matrices of any width


@dataclass(frozen=True)
class Tile:
    """What a program takes of a matrix at a time. On its columns depends the order of sums."""

    outputs: int
    columns: int  # or units of packed elements


@dataclass(frozen=True)
class Launch:
    """What a product's speed depends on, and its result does not."""

    outputs: int  # of a tile
    warps: int
    stages: int  # tiles that are on their way at once

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def choose_tile(weight: Tensor | QuantizedRows, dtype: torch.dtype) -> Tile:
    """For rows of this format. Narrow matrices of floats have programs of one warp: enough of them, mostly, without
    splitting columns."""
    if isinstance(weight, QuantizedRows):
        return Tile(64, weight.slice)
    enough = weight.shape[0] >= 64 * _PROGRAMS["float"]
    return Tile(64, 64) if enough or dtype == torch.float32 or backend() == "hip" else Tile(16, 256)


def choose_launch(rows: int, kind: str, tile: Tile, dtype: torch.dtype) -> Launch:
    """For so many rows of this format, and a matrix of the kind "float", "int8", "int4" or "float8"."""
    if dtype == torch.float32:
        return Launch(32, 8, 1)  # without tensor cores
    if backend() == "hip":
        return Launch(64, 4, 2)  # shared memory is short
    if tile.outputs == 16:
        return Launch(16, 1, 4)
    if rows <= 16:
        return Launch(64, 4, 4 if kind in ("int8", "float8") else 3)
    if rows <= 32:
        return Launch(64, 4, 4)
    return Launch(64, 4, 3) if kind == "int4" else Launch(128, 8, 3)


def product(
    x: Tensor, weight: Tensor | QuantizedRows, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """residual [rows, out] + x [rows, in] @ weight [out, in].T + bias [out], in x's format.

    Up to `FEW_ROWS` rows (`FEW_PACKED_ROWS`) do not know how many there are; more may. The residual is used up: the
    result may lie in its memory, which must not be x's.
    """
    if _few(x, weight):
        return _launch(x, weight, bias, residual, gated=False)
    return _many_rows_product(x, weight, bias, residual)


def gated_product(x: Tensor, weight: Tensor | QuantizedRows, bias: Tensor | None = None) -> Tensor:
    """`silu_and_mul(product(x, weight, bias))`, to the bit, [rows, out / 2]."""
    if _few(x, weight):
        return _launch(x, weight, bias, None, gated=True)
    return silu_and_mul(_many_rows_product(x, weight, bias))


def _few(x: Tensor, weight: Tensor | QuantizedRows) -> bool:
    return x.shape[0] <= (FEW_PACKED_ROWS if isinstance(weight, QuantizedRows) else FEW_ROWS)


def _many_rows_product(
    x: Tensor, weight: Tensor | QuantizedRows, bias: Tensor | None, residual: Tensor | None = None
) -> Tensor:
    """PyTorch's, in its own order: in 8-bit floats where they have a scale for each row, else of the matrix widened."""
    bias = None if bias is None else bias.to(x.dtype)
    if isinstance(weight, QuantizedRows):
        if fp8.takes(x, weight):
            y = fp8.product(x, weight, bias)
            return y if residual is None else y.add_(residual)
        weight = dequantize(weight, x.dtype)
    weight = weight.to(x.dtype)
    if residual is None:
        return F.linear(x, weight, bias)
    y = residual.addmm_(x, weight.t())  # adding it later is a launch more, and reads and writes all of it again
    return y if bias is None else y.add_(bias)


def dequantize(weight: QuantizedRows, dtype: torch.dtype) -> Tensor:
    """The matrix [out, in], in one pass; for gradients, too."""
    outputs, columns = weight.shape
    out = torch.empty(outputs, columns, dtype=dtype, device=weight.data.device)
    _dequantize[(outputs, triton.cdiv(columns, _WIDENED))](
        _units(weight),
        weight.scales,
        weight.mins,
        out,
        outputs,
        columns,
        weight.data.shape[1] // 2,
        weight.group,
        FORMAT=weight.name,
        SLICE=weight.slice,
        PACKED=16 // weight.bits,
        COLUMNS=_WIDENED,
    )
    return out


def _launch(
    x: Tensor, weight: Tensor | QuantizedRows, bias: Tensor | None, residual: Tensor | None, *, gated: bool
) -> Tensor:
    rows, (outputs, columns) = x.shape[0], weight.shape
    out = x.new_empty(rows, outputs // 2 if gated else outputs)
    if not rows:
        return out
    matrix: tuple[Tensor, Tensor | None, Tensor | None]
    if isinstance(weight, Tensor):
        group, packed = columns, 1
        matrix = weight.contiguous(), None, None
    else:
        group, packed = weight.group, 16 // weight.bits
        matrix = _units(weight), weight.scales, weight.mins
    whole_rows = group >= columns
    kind, tile = _kind(weight), choose_tile(weight, x.dtype)
    launch, width = choose_launch(rows, kind, tile, x.dtype), tile.columns
    units = matrix[0].shape[1]
    splits, length = _splits(weight, tile)
    tiles = triton.cdiv(outputs, launch.outputs)
    partial = x.new_empty(splits, rows, outputs, dtype=torch.float32) if splits > 1 else None
    _product[(tiles, splits)](
        x.contiguous(),
        *matrix,
        bias,
        None if residual is None else residual.contiguous(),
        out,
        partial,
        counters(x.device, tiles) if splits > 1 else None,
        rows,
        outputs,
        columns,
        units,
        length,
        FORMAT=kind,
        PACKED=packed,
        GROUP=_WHOLE_ROWS if whole_rows else group,
        RUN=packed if whole_rows else math.gcd(group, packed * width) // width,
        GROUPED=not whole_rows or matrix[2] is not None,
        GATED=gated,
        EVEN=columns % (packed * width) == 0,
        SPLIT=splits > 1,
        ROWS=max(16, triton.next_power_of_2(rows)),
        OUTPUTS=launch.outputs,
        UNITS=width,
        BY_BITS=capability() >= 80,
        **launch.options,
        **one_order(),
        **early(),
    )
    return out


def splits_of(weight: Tensor | QuantizedRows, dtype: torch.dtype = torch.bfloat16) -> int:
    """Into how many parts a matrix's columns are cut."""
    return _splits(weight, choose_tile(weight, dtype))[0]


def _kind(weight: Tensor | QuantizedRows) -> str:
    return "float" if isinstance(weight, Tensor) else weight.name


def _units(weight: QuantizedRows) -> Tensor:
    return weight.data.view(torch.int16)


def _splits(weight: Tensor | QuantizedRows, tile: Tile) -> tuple[int, int]:
    """How many parts a matrix's columns are cut into, and how many units of a row each has."""
    data = weight if isinstance(weight, Tensor) else _units(weight)
    steps = triton.cdiv(data.shape[1], tile.columns)
    wanted = min(
        _MOST_SPLITS,
        _PROGRAMS[_kind(weight)] // triton.cdiv(data.shape[0], tile.outputs),
        steps * tile.columns * data.itemsize // _LEAST_SPLIT,
    )
    length = triton.cdiv(steps, max(1, wanted))
    return triton.cdiv(steps, length), length * tile.columns


@triton.jit(do_not_specialize=["rows"])
def _product(
    x,
    data,
    scales,
    mins,
    bias,
    residual,
    out,
    partial,
    counters,
    rows,
    outputs,
    columns,
    units,  # of a row of the matrix: elements, or of packed ones 16 bits
    length,  # of a split
    FORMAT: tl.constexpr,
    PACKED: tl.constexpr,  # elements in a unit, each of another slice
    GROUP: tl.constexpr,
    RUN: tl.constexpr,  # slices that share a scale, wherever they lie
    GROUPED: tl.constexpr,  # whether scales are more than a factor of the result
    GATED: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    UNITS: tl.constexpr,
    BY_BITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: tiles of outputs, splits. Half of a gated tile are gates, the other half what they open."""
    tile, split, splits, row = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.arange(0, ROWS)
    output, inside = _outputs_of(tile, outputs, OUTPUTS, GATED)
    source = tl.where(inside, output, 0)  # for what is read: there is always such a row
    begin, end = split * length, tl.minimum(units, (split + 1) * length)
    await_earlier(EARLY)
    acc = _part(
        x,
        data,
        scales,
        mins,
        row,
        source,
        begin,
        end,
        rows,
        outputs,
        columns,
        units,
        FORMAT,
        PACKED,
        GROUP,
        RUN,
        GROUPED,
        EVEN,
        UNITS,
        BY_BITS,
    )
    let_next(EARLY)
    mask = (row < rows)[None, :] & inside[:, None]
    if SPLIT:
        place = partial + row[None, :] * outputs + output[:, None]
        tl.store(place + split * rows * outputs, acc, mask=mask)
        if not last_to_arrive(counters + tile, splits):
            return
        acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
        for each in range(splits):
            acc += tl.load(place + each * rows * outputs, mask=mask, other=0.0, cache_modifier=".cg")
    if scales is not None and not GROUPED:
        acc *= _of_outputs(scales + source, ROWS)
    if bias is not None:
        acc += _of_outputs(bias + source, ROWS)
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [2, OUTPUTS // 2, ROWS]), 1, 2, 0))
        acc = activated(gate, up, out.dtype.element_ty)
        outputs = outputs // 2
        output, inside = _outputs_of(tile, outputs, OUTPUTS // 2, False)
        mask = (row < rows)[None, :] & inside[:, None]
    place = row[None, :] * outputs + output[:, None]
    if residual is not None:
        acc += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _outputs_of(tile, outputs, OUTPUTS: tl.constexpr, GATED: tl.constexpr):
    """Which rows of the matrix a tile has, and which of them there are."""
    at = tl.arange(0, OUTPUTS)
    if GATED:
        half, at = at // (OUTPUTS // 2), tile * (OUTPUTS // 2) + at % (OUTPUTS // 2)
        return at + half * (outputs // 2), at < outputs // 2
    else:
        at += tile * OUTPUTS
        return at, at < outputs


@triton.jit
def _part(
    x,
    data,
    scales,
    mins,
    row,
    output,
    begin,
    end,
    rows,
    outputs,
    columns,
    units,
    FORMAT: tl.constexpr,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    RUN: tl.constexpr,
    GROUPED: tl.constexpr,
    EVEN: tl.constexpr,
    UNITS: tl.constexpr,
    BY_BITS: tl.constexpr,
):
    """Rows of the matrix times those of x, of the units [begin, end): float32 [outputs, rows]."""
    at = tl.arange(0, UNITS)
    matrix, x_rows = data + (output.to(tl.int64) * units)[:, None], x + (row * columns)[:, None]
    acc = tl.zeros([output.shape[0], row.shape[0]], tl.float32)
    # Factors of groups are asked for a tile ahead: waiting for them took longer than the tile.
    if GROUPED:
        a, b, c, d = _factors(scales, begin, output, outputs, columns, PACKED, RUN, UNITS, GROUP)
        if mins is not None:
            e, f, g, h = _factors(mins, begin, output, outputs, columns, PACKED, RUN, UNITS, GROUP)
    for first in range(begin, end, UNITS):
        if GROUPED:
            scale = (a, b, c, d)
            a, b, c, d = _factors(scales, first + UNITS, output, outputs, columns, PACKED, RUN, UNITS, GROUP)
            if mins is not None:
                least = (e, f, g, h)
                e, f, g, h = _factors(mins, first + UNITS, output, outputs, columns, PACKED, RUN, UNITS, GROUP)
        if EVEN or PACKED > 1:
            tile = tl.load(matrix + (first + at)[None, :])
        else:
            tile = tl.load(matrix + (first + at)[None, :], mask=(first + at < units)[None, :], other=0.0)
        sums, total = tl.zeros(acc.shape, tl.float32), tl.zeros(acc.shape, tl.float32)
        for slice in tl.static_range(PACKED):
            column = first * PACKED + slice * UNITS + at
            wanted = (row < rows)[:, None] if EVEN else (row < rows)[:, None] & (column < columns)[None, :]
            part = tl.trans(tl.load(x_rows + column[None, :], mask=wanted, other=0.0))
            weight = tile if PACKED == 1 else widened(tile, slice, FORMAT, mins is None, BY_BITS)
            weight = weight.to(part.dtype)
            if not GROUPED:
                acc = tl.dot(weight, part, acc, input_precision="ieee")
            else:
                sums = tl.dot(weight, part, sums, input_precision="ieee")
                if mins is not None:  # how much each row of x adds up to: for each output, in the order of a product
                    ones = tl.full(weight.shape, 1, tl.float32).to(part.dtype)
                    total = tl.dot(ones, part, total, input_precision="ieee")
                if (slice + 1) % RUN == 0:
                    acc = tl.fma(sums, tl.broadcast_to(scale[slice // RUN][:, None], acc.shape), acc)
                    sums = tl.zeros(acc.shape, tl.float32)
                    if mins is not None:
                        acc = tl.fma(total, tl.broadcast_to(least[slice // RUN][:, None], acc.shape), acc)
                        total = tl.zeros(acc.shape, tl.float32)
    return acc


@triton.jit
def _factors(
    values,
    first,
    output,
    outputs,
    columns,
    PACKED: tl.constexpr,
    RUN: tl.constexpr,
    UNITS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Of the runs of slices in the tile that begins at unit `first`: at most four, float32 [outputs] each."""
    a = _factor(values, first * PACKED + (RUN - 1) * UNITS, output, outputs, columns, GROUP)
    b, c, d = a, a, a
    if PACKED // RUN > 1:
        b = _factor(values, first * PACKED + (2 * RUN - 1) * UNITS, output, outputs, columns, GROUP)
    if PACKED // RUN > 2:
        c = _factor(values, first * PACKED + (3 * RUN - 1) * UNITS, output, outputs, columns, GROUP)
        d = _factor(values, first * PACKED + (4 * RUN - 1) * UNITS, output, outputs, columns, GROUP)
    return a, b, c, d


@triton.jit
def _factor(values, column, output, outputs, columns, GROUP: tl.constexpr):
    group = tl.minimum(column, columns - 1) // GROUP  # behind the last column there is padding with zeros
    return tl.load(values + group * outputs + output).to(tl.float32)


@triton.jit
def _of_outputs(places, ROWS: tl.constexpr):
    """What lies there for each output, float32, the same for all rows."""
    return tl.broadcast_to(tl.load(places).to(tl.float32)[:, None], [places.shape[0], ROWS])


@triton.jit
def _dequantize(
    data,
    scales,
    mins,
    out,
    outputs,
    columns,
    units,
    group,
    FORMAT: tl.constexpr,
    SLICE: tl.constexpr,
    PACKED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid: rows, parts of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < columns
    BITS: tl.constexpr = 16 // PACKED
    unit = column // (PACKED * SLICE) * SLICE + column % SLICE
    tile = tl.load(data + row * units + unit, mask=mask, other=0)
    q = (tile >> (column // SLICE % PACKED * BITS).to(tl.int16)) & ((1 << BITS) - 1)
    if FORMAT == "float8":
        wide = q.to(tl.int8).to(tl.float8e4nv, bitcast=True).to(tl.float32)
    elif FORMAT == "int8":
        wide = q.to(tl.int8).to(tl.float32)
    else:
        wide = q.to(tl.float32) - 8 if mins is None else q.to(tl.float32)
    at = column // group * outputs + row
    wide *= tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)
    if mins is not None:
        wide += tl.load(mins + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, wide.to(out.dtype.element_ty), mask=mask)
