"""Where a model's weights live, and how they get there from the files that are mapped into main memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from coserve.kernels.device import CPU, is_gpu
from coserve.kernels.gpu.formats import QuantizedRows
from coserve.kernels.linear import Weight
from coserve.kernels.quantized import QuantizedWeight
from coserve.kernels.transfer import Transfer


class Placement:
    """On the CPU: weights stay as they are, views of the files where no format changes."""

    device = CPU
    moves = False

    def modules(self, modules: Sequence[Weight]) -> list[Weight]:
        """A matrix's modules, or a single tensor, from main memory to the device."""
        return list(modules)

    def weight(self, weight: Weight) -> Weight:
        """A whole matrix, as the device's kernels read it."""
        return weight

    def finish(self) -> None:
        """All has been asked for: wait until all is there."""


class OnGpu(Placement):
    """In a GPU's memory. Formats change there, after the move: it is done in no time."""

    moves = True

    def __init__(self, device: torch.device, transfer: Transfer | None = None):
        self.device = device
        self._transfer = transfer or Transfer(device)

    def modules(self, modules: Sequence[Weight]) -> list[Weight]:
        """Those of one format lie one below the other: the matrix of all of them is a view."""
        tensors = [module for module in modules if isinstance(module, Tensor)]
        if len(tensors) < len(modules) or len({tensor.dtype for tensor in tensors}) > 1:
            return [self._moved(module) for module in modules]
        rows = [tensor.shape[0] for tensor in tensors]
        whole = torch.empty(sum(rows), *tensors[0].shape[1:], dtype=tensors[0].dtype, device=self.device)
        parts = whole.split(rows)
        for part, tensor in zip(parts, tensors, strict=True):
            self._transfer.upload(part, tensor)
        return list(parts)

    def weight(self, weight: Weight) -> Weight:
        if not isinstance(weight, QuantizedWeight):
            return weight
        if weight.data.device != self.device:
            weight = self._moved(weight)
        assert isinstance(weight, QuantizedWeight)
        return QuantizedRows.of(weight, self.device)

    def finish(self) -> None:
        self._transfer.wait()
        if is_gpu(self.device):
            torch.cuda.empty_cache()  # what changing formats took

    def _moved(self, weight: Weight) -> Weight:
        move = self._transfer.to_device
        if isinstance(weight, Tensor):
            return move(weight)
        mins = None if weight.mins is None else move(weight.mins)
        return replace(weight, data=move(weight.data), scales=move(weight.scales), mins=mins)


def placement_on(device: torch.device) -> Placement:
    return OnGpu(device) if is_gpu(device) else Placement()
