"""Dropout that a recomputation repeats exactly, however the rows are cut.

Of one seed a GPU drops other elements than a CPU: a CPU draws its numbers one after the other, and those of a large
model's step would take it longer than the step.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.kernels.gpu import kernels_for

_TILE = 16  # rows that share a random generator


@dataclass(frozen=True)
class RowDropout:
    """Drops with probability `p`; what is dropped depends on the key, the module and the row alone.

    `first_row`: the row of the micro-batch at which the inputs given to a call start.
    """

    p: float
    key: str
    first_row: int

    def __call__(self, module: str, x: Tensor) -> Tensor:
        """x [rows, n] -> the same with some elements zero and the others scaled up by 1 / (1 - p)."""
        if gpu := kernels_for(x):
            return gpu.dropout(x, self.p, self._seed(module), self.first_row)
        first, last = self.first_row, self.first_row + x.shape[0]
        tiles = range(first // _TILE, -(-last // _TILE))
        mask = torch.cat([self._tile(module, tile, x.shape[1]) for tile in tiles])
        start = first - tiles.start * _TILE
        return x * mask[start : start + x.shape[0]].to(x.dtype) / (1 - self.p)

    def _tile(self, module: str, tile: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed(f"{module}/{tile}"))
        return torch.rand(_TILE, width, generator=generator) >= self.p

    def _seed(self, what: str) -> int:
        return zlib.crc32(f"{self.key}/{what}".encode())
