"""Mixture of experts: each row through its own few of many matrices, in one grouped product.

Rows are sorted by expert. How many each expert has is known on the GPU alone, and stays there: a program finds out by
itself whose tile it computes. An expert's tile has a fixed shape, and a row's result does not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _OUTPUTS, _COLUMNS = 32, 64, 64  # a tile


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which rows go to which experts. A place is a row's number among those sorted by expert, [rows * k] of them.

    rows int32 [rows * k]: the row at each place. places int32 [rows, k]: the places of each row, in the order of its
    experts. counts int32 [experts].
    """

    rows: Tensor
    places: Tensor
    counts: Tensor

    @classmethod
    def of(cls, experts: Tensor, number: int) -> Assignment:
        """experts int64 [rows, k], of `number` experts."""
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(order.shape[0], device=order.device)
        counts = torch.zeros(number, dtype=torch.int32, device=order.device)
        counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
        return cls((order // experts.shape[1]).int(), places.view_as(experts).int(), counts)


def grouped_product(x: Tensor, weights: Tensor, assignment: Assignment, *, gather: bool = False) -> Tensor:
    """Each place's row times its own expert's matrix: x, weights [experts, out, in] -> [places, out].

    x [places, in] is sorted by expert; or with `gather`, x [rows, in] is not, and each place fetches its row.
    """
    experts, outputs, columns = weights.shape
    places = assignment.rows.shape[0]
    out = x.new_empty(places, outputs)
    tiles = triton.cdiv(places, _ROWS) + min(experts, places)  # as many as there can be
    _grouped_product[(tiles, triton.cdiv(outputs, _OUTPUTS))](
        x.contiguous(),
        weights.contiguous(),
        out,
        assignment.counts,
        assignment.rows if gather else None,
        experts,
        outputs,
        columns,
        EXPERTS=triton.next_power_of_2(experts),
        ROWS=_ROWS,
        OUTPUTS=_OUTPUTS,
        COLUMNS=_COLUMNS,
        num_warps=4,
        num_stages=3,
    )
    return out


def combine(y: Tensor, weights: Tensor, assignment: Assignment) -> Tensor:
    """The weighted sum of each row's places: y [places, n], weights [rows, k] -> [rows, n]."""
    (rows, k), n = weights.shape, y.shape[1]
    out = y.new_empty(rows, n)
    _combine_experts[(rows, triton.cdiv(n, 1024))](
        y, weights.contiguous(), assignment.places, out, n, K=k, COLUMNS=1024
    )
    return out


@triton.jit
def _grouped_product(
    x,
    weights,
    out,
    counts,
    gathered,
    experts,
    outputs,
    columns,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid: tiles of places, expert by expert; tiles of outputs."""
    tile = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    count = tl.load(counts + expert, mask=expert < experts, other=0)
    tiles = tl.cdiv(count, ROWS)
    ends = tl.cumsum(tiles, 0)
    if tile >= tl.sum(tiles, 0):
        return
    mine = tl.sum((ends <= tile).to(tl.int32), 0)
    before = expert < mine
    start = (tile - tl.sum(tl.where(before, tiles, 0), 0)) * ROWS
    first = tl.sum(tl.where(before, count, 0), 0)
    left = tl.sum(tl.where(expert == mine, count, 0), 0) - start
    inside = tl.arange(0, ROWS) < left
    place = (first + start + tl.arange(0, ROWS)).to(tl.int64)
    if gathered is not None:
        row = tl.load(gathered + place, mask=inside, other=0).to(tl.int64)
    else:
        row = place
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    weights += mine.to(tl.int64) * outputs * columns
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for begin in range(0, columns, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        mask = (column < columns)[None, :]
        a = tl.load(x + row[:, None] * columns + column[None, :], mask=inside[:, None] & mask, other=0.0)
        at = output.to(tl.int64)[:, None] * columns + column[None, :]
        b = tl.load(weights + at, mask=(output < outputs)[:, None] & mask, other=0.0)
        acc += tl.dot(a, tl.trans(b), input_precision="ieee")
    mask = inside[:, None] & (output < outputs)[None, :]
    tl.store(out + place[:, None] * outputs + output[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _combine_experts(y, weights, places, out, n, K: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid: rows, parts of a row."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < n
    acc = tl.zeros([COLUMNS], tl.float32)
    for i in range(K):
        place = tl.load(places + row * K + i).to(tl.int64)
        weight = tl.load(weights + row * K + i).to(tl.float32)
        acc += weight * tl.load(y + place * n + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * n + column, acc.to(out.dtype.element_ty), mask=mask)
