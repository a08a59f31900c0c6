"""The KV cache: keys and values in blocks of 16 tokens, and the map from a batch's rows to them."""

from __future__ import annotations

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
        positions, slots, tiles, tables, whole = [], [], [], [], []
        row = table_start = 0
        for start, length, blocks in segments:
            table = np.asarray(blocks[: -(-(start + length) // BLOCK_SIZE)], dtype=np.int32)
            where = np.arange(start, start + length, dtype=np.int32)
            positions.append(where)
            slots.append(table[where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE)
            for first in range(0, length, TILE_ROWS):
                tiles.append((row + first, min(TILE_ROWS, length - first), start + first, table_start))
            tables.append(table)
            whole.append((row, length, start, table_start))
            row += length
            table_start += len(table)
        if decode is None:
            decode = [segment[1] == 1 for segment in whole]
        steps = [segment for segment, wanted in zip(whole, decode, strict=True) if wanted]
        others = [segment for segment, wanted in zip(whole, decode, strict=True) if not wanted]
        return cls(
            torch.from_numpy(np.concatenate(positions)),
            torch.from_numpy(np.concatenate(slots)),
            torch.from_numpy(np.asarray(tiles, dtype=np.int32)),
            torch.from_numpy(np.concatenate(tables)),
            torch.tensor(steps + others, dtype=torch.int32),
            decoding=len(steps),
            context=max((position + 1 for _, _, position, _ in steps), default=0),
            longest=max((rows for _, rows, _, _ in others), default=0),
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
