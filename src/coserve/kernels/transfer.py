"""Moving tensors between main memory and a GPU's.

A GPU copies by itself, and at full speed, only from and to pinned memory. Pinning as much as a model has would take
longer than the copy, so everything goes through two small pinned buffers: while the GPU moves what is in one, all of
PyTorch's threads copy to or from the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch
from torch import Tensor

from coserve.kernels.device import is_gpu

_PIECE_BYTES = 32 << 20  # large enough that starting a copy costs nothing, small enough to be pinned in a moment


class Transfer:
    """To and from one device, on the calling thread's stream. With "cpu" for a device it copies just so, for tests."""

    def __init__(self, device: torch.device, piece_bytes: int = _PIECE_BYTES):
        self.device = device
        self._piece_bytes = piece_bytes
        self._stages = cycle([_Stage(piece_bytes, device) for _ in range(2)])

    def to_device(self, tensor: Tensor) -> Tensor:
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        self.upload(target, tensor)
        return target

    def upload(self, target: Tensor, source: Tensor) -> None:
        """Fill `target`, contiguous on the device, with `source`, of the same format and size. Returns before the GPU
        has copied the last of it: what runs on the same stream sees it."""
        for to, piece in zip(self._pieces(target), self._pieces(source.contiguous()), strict=True):
            stage = next(self._stages)
            stage.wait()
            to.copy_(stage.room(piece).copy_(piece), non_blocking=True)
            stage.mark()

    def download(self, target: Tensor, source: Tensor) -> None:
        """Fill `target`, contiguous in main memory, with `source`, contiguous on the device; returns when it is."""
        on_its_way: tuple[_Stage, Tensor] | None = None
        for to, piece in zip(self._pieces(target), self._pieces(source), strict=True):
            stage = next(self._stages)
            stage.wait()
            stage.room(piece).copy_(piece, non_blocking=True)
            stage.mark()
            if on_its_way is not None:
                _finish(*on_its_way)
            on_its_way = stage, to
        if on_its_way is not None:
            _finish(*on_its_way)

    def wait(self) -> None:
        """Until all is copied."""
        if is_gpu(self.device):
            torch.cuda.current_stream(self.device).synchronize()

    def _pieces(self, tensor: Tensor) -> Iterator[Tensor]:
        """The bytes of a contiguous tensor."""
        return iter(tensor.view(-1).view(torch.uint8).split(self._piece_bytes)) if tensor.numel() else iter(())


def _finish(stage: _Stage, target: Tensor) -> None:
    stage.wait()
    target.copy_(stage.room(target))


class _Stage:
    """A buffer, and whether the device is still at it."""

    def __init__(self, size: int, device: torch.device):
        self._device, on_gpu = device, is_gpu(device)
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._moved = torch.cuda.Event() if on_gpu else None

    def room(self, piece: Tensor) -> Tensor:
        return self._buffer[: piece.numel()]

    def mark(self) -> None:
        if self._moved is not None:
            self._moved.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        if self._moved is not None:
            self._moved.synchronize()
