"""What lies between two steps of decoding, on the GPU: a step's tokens are the next one's input, where they are.

The CPU adds what it alone knows, a number or two a row: which blocks rows were given, and their random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.penalties import NONE
from coserve.kernels.paged import BLOCK_SIZE, PagedLayout

# The rows of `DecodeRows.inputs`. The first ones change with every step.
GROWN, UNIFORM, TOKEN, POSITION, ADAPTER, PENALTIES, TOP_K, TEMPERATURE, TOP_P, MIN_P = range(10)
EACH_STEP = 2
SAME, IDLE = -1, -2  # instead of a new block: none is needed; nobody decodes in this row

_PAGE = tl.constexpr(BLOCK_SIZE)
_IDLE, _TOKEN = tl.constexpr(IDLE), tl.constexpr(TOKEN)
_POSITION, _ADAPTER, _PENALTIES = tl.constexpr(POSITION), tl.constexpr(ADAPTER), tl.constexpr(PENALTIES)
_NONE = tl.constexpr(NONE)


@dataclass(frozen=True, eq=False)
class DecodeRows:
    """A batch that decodes from step to step; row i is one sequence's until another one gets it.

    inputs int32 [10, rows]: the new block, the random number (float32's bits, like all that are not integers), the last
    token, its position, the adapter's slot (`lora.LoraStack`), that of its penalties (`penalties.Penalties`), and what
    `sampling.sample` takes.
    tables int32 [rows, blocks]: the block tables.
    scratch: a block that nobody reads; idle rows write there.
    token_ids int64 [rows], slots int32 [rows], segments int32 [rows, 4], lora_tiles int32 [rows, 3]: what `begin` makes
    of them for the decoder.
    penalties int32 [rows]: the slots of those who decode, and `NONE` for others.
    """

    inputs: Tensor
    tables: Tensor
    scratch: int
    token_ids: Tensor
    slots: Tensor
    segments: Tensor
    lora_tiles: Tensor
    penalties: Tensor

    @classmethod
    def idle(cls, rows: int, blocks: int, scratch: int, device: torch.device | str) -> DecodeRows:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        inputs = zeros(10, rows)
        inputs[GROWN] = IDLE
        token_ids = zeros(rows, dtype=torch.int64)
        made = (token_ids, zeros(rows), zeros(rows, 4), zeros(rows, 3), zeros(rows))
        return cls(inputs, zeros(rows, blocks), scratch, *made)

    def rest(self) -> None:
        """All rows are idle until they are told otherwise."""
        self.inputs[GROWN].fill_(IDLE)

    def floats(self, what: int, rows: int) -> Tensor:
        return self.inputs[what, :rows].view(torch.float32)

    def layout(self, rows: int, context: int) -> PagedLayout:
        """Of the first rows, none of which has more than `context` keys; after `begin`."""
        return PagedLayout(
            self.inputs[POSITION, :rows],
            self.slots[:rows],
            self.segments[:rows],  # a tile each
            self.tables.view(-1),
            self.segments[:rows],
            decoding=rows,
            context=context,
            longest=0,
        )


def begin(rows: DecodeRows, count: int) -> None:
    """The first `count` rows are given their blocks, and say where they stand."""
    capacity, width = rows.tables.shape
    made = (rows.token_ids, rows.slots, rows.segments, rows.lora_tiles, rows.penalties)
    _begin[(count,)](rows.inputs, rows.tables, *made, capacity, width, rows.scratch)


def end(rows: DecodeRows, tokens: Tensor) -> None:
    """The rows take their tokens int64 [count] and move on by one."""
    _end[(tokens.shape[0],)](rows.inputs, tokens, rows.tables.shape[0])


@triton.jit(do_not_specialize=["capacity", "width", "scratch"])
def _begin(inputs, tables, token_ids, slots, segments, lora_tiles, penalties, capacity, width, scratch):
    """Grid: rows."""
    row = tl.program_id(0)
    grown = tl.load(inputs + row)
    position = tl.load(inputs + _POSITION * capacity + row)
    token = tl.load(inputs + _TOKEN * capacity + row)
    idle = grown == _IDLE
    position = tl.where(idle, 0, position)
    grown = tl.where(idle, scratch, grown)
    tl.store(inputs + _POSITION * capacity + row, position)
    first = row * width
    place = first + position // _PAGE
    block = tl.where(grown >= 0, grown, tl.load(tables + place))
    tl.store(tables + place, block)
    # A token that could not be chosen is below zero; what is computed of it is thrown away.
    tl.store(token_ids + row, tl.maximum(token, 0).to(tl.int64))
    tl.store(slots + row, block * _PAGE + position % _PAGE)
    tl.store(segments + row * 4, row)
    tl.store(segments + row * 4 + 1, 1)
    tl.store(segments + row * 4 + 2, position)
    tl.store(segments + row * 4 + 3, first)
    tl.store(lora_tiles + row * 3, row)
    tl.store(lora_tiles + row * 3 + 1, 1)
    tl.store(lora_tiles + row * 3 + 2, tl.where(idle, 0, tl.load(inputs + _ADAPTER * capacity + row)))
    tl.store(penalties + row, tl.where(idle, _NONE, tl.load(inputs + _PENALTIES * capacity + row)))


@triton.jit(do_not_specialize=["capacity"])
def _end(inputs, tokens, capacity):
    """Grid: rows."""
    row = tl.program_id(0)
    at = inputs + _POSITION * capacity + row
    tl.store(inputs + _TOKEN * capacity + row, tl.load(tokens + row).to(tl.int32))
    tl.store(at, tl.load(at) + 1)
