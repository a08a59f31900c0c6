"""Adapters of many requests on one product: two kernels for all of a batch's segments (Punica, Chen et al., 2023).

The first shrinks each row to its adapter's rank, the second expands it and adds it to the product. An adapter's
matrices lie in a slot of one tensor for all; what is smaller than the largest rank is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.linear import LoraLayer, Parts

_ROWS = 16  # of one adapter, in a tile
_COLUMNS = 128  # of the input, in a tile
_OUTPUTS = 64  # columns of the output, in a tile
_SPLIT = 1024  # columns of the input that one program sums
_LEAST_RANK = 16  # what a tensor core takes


@dataclass(frozen=True, eq=False)
class LoraStack:
    """The adapters of one product, whose output is that of several modules side by side. Of `parts` modules:

    a [slots, parts, rank, in], b [slots, out, rank], in the format of the rows;
    scalings float32 [slots, parts]: 0 where the adapter has no such module.
    tiles int32 [n, 3]: module, first and last + 1 of the columns of the output that a program writes.
    """

    a: Tensor
    b: Tensor
    scalings: Tensor
    tiles: Tensor

    @classmethod
    def of(
        cls, layers: Sequence[LoraLayer], parts: Parts, columns: int, dtype: torch.dtype, device: torch.device | str
    ) -> LoraStack:
        """A slot for each layer's adapter; `columns`: of the input. Raises `ValueError` for one that drops inputs."""
        if any(layer.dropout is not None for layer in layers):
            raise ValueError("an adapter with dropout is in training; its rows do not go through a stack")
        ranks = [weights.a.shape[0] for layer in layers for weights in layer.modules.values()]
        rank = triton.next_power_of_2(max([_LEAST_RANK, *ranks]))
        outputs = max(last for _, _, last in parts)
        a = torch.zeros(len(layers), len(parts), rank, columns, dtype=dtype, device=device)
        b = torch.zeros(len(layers), outputs, rank, dtype=dtype, device=device)
        scalings = torch.zeros(len(layers), len(parts))
        for slot, layer in enumerate(layers):
            for part, (name, first, last) in enumerate(parts):
                if (weights := layer.modules.get(name)) is not None:
                    own = weights.a.shape[0]
                    a[slot, part, :own], b[slot, first:last, :own] = weights.a.detach(), weights.b.detach()
                    scalings[slot, part] = weights.scaling
        tiles = [
            (part, start, min(last, start + _OUTPUTS))
            for part, (_, first, last) in enumerate(parts)
            for start in range(first, last, _OUTPUTS)
        ]
        return cls(a, b, scalings.to(device), torch.tensor(tiles, dtype=torch.int32, device=device))


def lora_tiles(segments: Sequence[tuple[int, int, int]], device: torch.device | str) -> Tensor:
    """(first row, last row + 1, slot) of each segment -> int32 [tiles, 3]: first row, rows, slot; for all layers."""
    tiles = [(row, min(_ROWS, end - row), slot) for start, end, slot in segments for row in range(start, end, _ROWS)]
    return torch.tensor(tiles, dtype=torch.int32).view(-1, 3).to(device)


def add_lora(y: Tensor, x: Tensor, stack: LoraStack, tiles: Tensor) -> None:
    """y [rows, out] += scaling * (x [rows, in] @ a.T) @ b.T, of each row's own adapter. `tiles`: see `lora_tiles`."""
    if not tiles.shape[0]:
        return
    rows, columns = x.shape
    _, parts, rank, _ = stack.a.shape
    splits = triton.cdiv(columns, _SPLIT)
    reduced = x.new_empty(splits, rows, parts, rank, dtype=torch.float32)
    _shrink[(tiles.shape[0], parts, splits)](
        x.contiguous(),
        stack.a,
        stack.scalings,
        tiles,
        reduced,
        rows,
        columns,
        ROWS=_ROWS,
        RANK=rank,
        COLUMNS=_COLUMNS,
        SPLIT=_SPLIT,
    )
    _expand[(tiles.shape[0], stack.tiles.shape[0])](
        reduced,
        stack.b,
        stack.scalings,
        tiles,
        stack.tiles,
        y,
        y.stride(0),
        rows,
        y.shape[1],
        parts,
        ROWS=_ROWS,
        RANK=rank,
        OUTPUTS=_OUTPUTS,
        SPLITS=splits,
    )


@triton.jit(do_not_specialize=["rows"])
def _shrink(
    x,
    a,
    scalings,
    tiles,
    reduced,
    rows,
    columns,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Grid: tiles of rows, modules, splits of the input's columns."""
    tile, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts = tl.num_programs(1)
    slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
    if tl.load(scalings + slot * parts + part) == 0:
        return
    row, count = tl.load(tiles + tile * 3).to(tl.int64) + tl.arange(0, ROWS), tl.load(tiles + tile * 3 + 1)
    inside = tl.arange(0, ROWS) < count
    rank = tl.arange(0, RANK)
    a += (slot * parts + part) * RANK * columns
    acc = tl.zeros([ROWS, RANK], tl.float32)
    for first in range(split * SPLIT, tl.minimum(columns, (split + 1) * SPLIT), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = column < columns
        here = tl.load(x + row[:, None] * columns + column[None, :], mask=inside[:, None] & mask[None, :], other=0.0)
        weight = tl.load(a + rank[:, None] * columns + column[None, :], mask=mask[None, :], other=0.0)
        acc += tl.dot(here, tl.trans(weight), input_precision="ieee")
    at = ((split * rows + row) * parts + part)[:, None] * RANK + rank[None, :]
    tl.store(reduced + at, acc, mask=inside[:, None])


@triton.jit(do_not_specialize=["rows"])
def _expand(
    reduced,
    b,
    scalings,
    tiles,
    columns_of,
    y,
    y_stride,
    rows,
    outputs,
    parts,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Grid: tiles of rows, tiles of the output's columns."""
    tile, part = tl.program_id(0), tl.load(columns_of + tl.program_id(1) * 3)
    slot = tl.load(tiles + tile * 3 + 2).to(tl.int64)
    scaling = tl.load(scalings + slot * parts + part)
    if scaling == 0:
        return
    row, count = tl.load(tiles + tile * 3).to(tl.int64) + tl.arange(0, ROWS), tl.load(tiles + tile * 3 + 1)
    inside = tl.arange(0, ROWS) < count
    column = tl.load(columns_of + tl.program_id(1) * 3 + 1) + tl.arange(0, OUTPUTS)
    mask = column < tl.load(columns_of + tl.program_id(1) * 3 + 2)
    rank = tl.arange(0, RANK)
    low = tl.zeros([ROWS, RANK], tl.float32)
    for split in range(SPLITS):
        at = ((split * rows + row) * parts + part)[:, None] * RANK + rank[None, :]
        low += tl.load(reduced + at, mask=inside[:, None], other=0.0)
    weight = tl.load(b + (slot * outputs + column)[:, None] * RANK + rank[None, :], mask=mask[:, None], other=0.0)
    delta = tl.dot(low.to(weight.dtype), tl.trans(weight), input_precision="ieee") * scaling
    place = y + row[:, None] * y_stride + column[None, :]
    mask = inside[:, None] & mask[None, :]
    total = tl.load(place, mask=mask, other=0.0).to(tl.float32) + delta
    tl.store(place, total.to(y.dtype.element_ty), mask=mask)
