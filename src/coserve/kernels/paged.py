"""The KV cache: keys and values in blocks of 16 tokens, and the map from a batch's rows to them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coserve.kernels.memory import huge_empty

BLOCK_SIZE = 16  # tokens; one AVX-512 vector of float32 in the attention kernel
TILE_ROWS = 8  # rows of one segment that read the cache together


class KVCache:
    """Storage for every layer. Which block belongs to whom is the engine's business.

    By layer: `keys` [blocks, kv_heads, head_dim, 16] and `values` [blocks, kv_heads, 16, head_dim]. In a CPU's memory
    keys lie as this says, so that a kernel reads one dimension of sixteen keys at once; in a GPU's they lie like the
    values, a token's dimensions side by side, and `keys` is a transposed view: what a token writes is one run of
    memory, and a tile of keys is read in wide loads.

    In 8-bit floats (`torch.float8_e4m3fn`, GPU only), `key_scales` and `value_scales` float32 [blocks, kv_heads, 16]
    have a factor for each token and head; None in other formats.
    """

    def __init__(
        self,
        layers: int,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        *,
        device: torch.device | str = "cpu",
        token_major: bool | None = None,
    ):
        """`token_major`: whether keys lie as on a GPU; None: as suits the device."""
        if token_major is None:
            token_major = torch.device(device).type != "cpu"
        self.blocks = blocks
        by_token = (blocks, kv_heads, BLOCK_SIZE, head_dim)
        by_dim = (blocks, kv_heads, head_dim, BLOCK_SIZE)

        def storage(*shape: int) -> list[Tensor]:
            if torch.device(device).type == "cpu":
                return [huge_empty(shape, dtype) for _ in range(layers)]
            return [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]

        self.keys = [k.transpose(2, 3) for k in storage(*by_token)] if token_major else storage(*by_dim)
        self.values = storage(*by_token)
        self.key_scales: list[Tensor] | None = None
        self.value_scales: list[Tensor] | None = None
        if dtype.itemsize == 1:
            self.key_scales, self.value_scales = (
                [torch.empty(by_token[:3], dtype=torch.float32, device=device) for _ in range(layers)] for _ in range(2)
            )


@dataclass(frozen=True)
class PagedLayout:
    """Where each of a batch's rows stands in its sequence and in the cache.

    positions, slots: int32 [rows]; slot = block * 16 + offset.
    tiles: int32 [tiles, 4]: first row, number of rows, position of the first row, start of the segment's block table.
    tables: int32 [n]: the segments' block tables, one after the other.
    segments: int32 [segments, 4]: like tiles, a segment each; those that decode come first.
    """

    positions: Tensor
    slots: Tensor
    tiles: Tensor
    tables: Tensor
    segments: Tensor
    decoding: int  # segments that decode
    context: int  # keys of the longest of them
    longest: int  # rows of the longest of the others

    @classmethod
    def build(
        cls, segments: Sequence[tuple[int, int, Sequence[int]]], decode: Sequence[bool] | None = None
    ) -> PagedLayout:
        """From (position of the first token, number of tokens, block table) of each segment, in the batch's order.

        `decode`: which segments, of one token each, are steps of decoding; None: those of one token. On a GPU they have
        a kernel of their own, with another order of summation: a prompt's last token should not take it by chance.
        """
        positions, slots, tiles, tables, steps, others = (array("i") for _ in range(6))
        row = context = longest = 0
        for i, (start, length, blocks) in enumerate(segments):
            table = blocks[: -(-(start + length) // BLOCK_SIZE)]
            segment = (row, length, start, len(tables))
            if length == 1 if decode is None else decode[i]:
                steps.extend(segment)
                context = max(context, start + 1)
            else:
                others.extend(segment)
                longest = max(longest, length)
            for first in range(0, length, TILE_ROWS):
                tiles.extend((row + first, min(TILE_ROWS, length - first), start + first, len(tables)))
            positions.extend(range(start, start + length))
            slots.extend(_slots(start, length, table))
            tables.extend(table)
            row += length
        return cls(
            _int32(positions),
            _int32(slots),
            _int32(tiles).view(-1, 4),
            _int32(tables),
            _int32(steps + others).view(-1, 4),
            decoding=len(steps) // 4,
            context=context,
            longest=longest,
        )

    def to(self, device: torch.device | str) -> PagedLayout:
        return replace(
            self,
            positions=self.positions.to(device),
            slots=self.slots.to(device),
            tiles=self.tiles.to(device),
            tables=self.tables.to(device),
            segments=self.segments.to(device),
        )


def _slots(start: int, length: int, table: Sequence[int]) -> Sequence[int]:
    if length == 1:  # a step's: what numpy does for one number takes longer than the number
        return (table[start // BLOCK_SIZE] * BLOCK_SIZE + start % BLOCK_SIZE,)
    where = np.arange(start, start + length)
    return (np.asarray(table)[where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE).tolist()


def _int32(numbers: array[int]) -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.int32)
