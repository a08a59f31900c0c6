"""The KV cache: keys and values in blocks of 16 tokens, and the map from a batch's rows to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_SIZE = 16  # tokens; one AVX-512 vector of float32 in the attention kernel
TILE_ROWS = 8  # rows of one segment that read the cache together


class KVCache:
    """Storage for every layer. Which block belongs to whom is the engine's business.

    By layer: `keys` [blocks, kv_heads, head_dim, 16] (transposed within a block, so that a kernel reads one dimension
    of sixteen keys at once) and `values` [blocks, kv_heads, 16, head_dim].
    """

    def __init__(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype):
        self.blocks = blocks
        self.keys = [torch.empty(blocks, kv_heads, head_dim, BLOCK_SIZE, dtype=dtype) for _ in range(layers)]
        self.values = [torch.empty(blocks, kv_heads, BLOCK_SIZE, head_dim, dtype=dtype) for _ in range(layers)]


@dataclass(frozen=True)
class PagedLayout:
    """Where each of a batch's rows stands in its sequence and in the cache.

    positions, slots: int32 [rows]; slot = block * 16 + offset.
    tiles: int32 [tiles, 4]: first row, number of rows, position of the first row, start of the segment's block table.
    tables: int32 [n]: the segments' block tables, one after the other.
    """

    positions: Tensor
    slots: Tensor
    tiles: Tensor
    tables: Tensor

    @classmethod
    def build(cls, segments: Sequence[tuple[int, int, Sequence[int]]]) -> PagedLayout:
        """From (position of the first token, number of tokens, block table) of each segment, in the batch's order."""
        positions, slots, tiles, tables = [], [], [], []
        row = table_start = 0
        for start, length, blocks in segments:
            table = np.asarray(blocks[: -(-(start + length) // BLOCK_SIZE)], dtype=np.int32)
            where = np.arange(start, start + length, dtype=np.int32)
            positions.append(where)
            slots.append(table[where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE)
            for first in range(0, length, TILE_ROWS):
                tiles.append((row + first, min(TILE_ROWS, length - first), start + first, table_start))
            tables.append(table)
            row += length
            table_start += len(table)
        return cls(
            torch.from_numpy(np.concatenate(positions)),
            torch.from_numpy(np.concatenate(slots)),
            torch.from_numpy(np.asarray(tiles, dtype=np.int32)),
            torch.from_numpy(np.concatenate(tables)),
        )
