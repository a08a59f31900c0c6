"""A model's weights and the used blocks of its KV cache: out of a GPU's memory, and back into it.

Tensors stay who they are. It is the memory under them that is given back and taken again, so that whoever holds a
tensor, or a view of one, need not be told. What is not named here (adapters, a job's own state) stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from coserve.errors import Unavailable
from coserve.kernels import KVCache
from coserve.kernels.device import is_gpu
from coserve.kernels.memory import available_memory, huge_empty
from coserve.kernels.transfer import Transfer


class Held(Protocol):
    """Memory of the device that can be given back, and filled again with what is to be kept of it."""

    @property
    def device_bytes(self) -> int: ...

    @property
    def kept_bytes(self) -> int: ...

    def keep(self, transfer: Transfer) -> None:
        """Copy to main memory what is to be kept."""

    def release(self) -> None:
        """Give the device's memory back."""

    def restore(self, transfer: Transfer) -> None:
        """Take it again, and fill it with what was kept, which stays kept."""


class Whole:
    """All that lies in a tensor's memory."""

    def __init__(self, tensor: Tensor):
        self._bytes = _bytes_of(tensor)
        self.device_bytes = self.kept_bytes = self._bytes.nbytes
        self._kept: Tensor | None = None

    def keep(self, transfer: Transfer) -> None:
        self._kept = huge_empty((self.kept_bytes,), torch.uint8)
        transfer.download(self._kept, self._bytes)

    def release(self) -> None:
        self._bytes.untyped_storage().resize_(0)

    def restore(self, transfer: Transfer) -> None:
        assert self._kept is not None
        self._bytes.untyped_storage().resize_(self.device_bytes)
        transfer.upload(self._bytes, self._kept)


class Blocks:
    """Some blocks of a layer's keys or values; what the others hold is nobody's."""

    def __init__(self, tensor: Tensor, blocks: Tensor):
        self._memory, self._blocks = tensor.untyped_storage(), blocks
        self._tensor = tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor  # 8-bit floats cannot be indexed
        self.device_bytes = self._memory.nbytes()
        self.kept_bytes = blocks.numel() * tensor[0].nbytes
        self._kept: Tensor | None = None

    def keep(self, transfer: Transfer) -> None:
        used = self._tensor[self._blocks].contiguous()
        self._kept = huge_empty(used.shape, used.dtype)
        transfer.download(self._kept, used)

    def release(self) -> None:
        self._memory.resize_(0)

    def restore(self, transfer: Transfer) -> None:
        assert self._kept is not None
        self._memory.resize_(self.device_bytes)
        self._tensor[self._blocks] = transfer.to_device(self._kept)


@dataclass(frozen=True)
class Offloaded:
    """What is in main memory meanwhile."""

    held: Sequence[Held]
    device: torch.device

    @property
    def device_bytes(self) -> int:
        """What was given back."""
        return sum(held.device_bytes for held in self.held)

    def restore(self) -> None:
        """Raises `Unavailable` if the device's memory is taken; then all stays as it was."""
        try:
            _restore(self.held, self.device)
        except torch.OutOfMemoryError as error:
            for held in self.held:
                held.release()
            _give_back(self.device)
            raise Unavailable(
                f"waking takes {_gb(self.device_bytes)} of the GPU's memory; {_gb(_free(self.device))} are free. "
                "Stop the other program first."
            ) from error


def offload(weights: Iterable[Tensor], cache: KVCache, blocks: Sequence[int], device: torch.device) -> Offloaded:
    """Move the memory under these tensors, and of the cache these blocks, to main memory.

    Raises `Unavailable` if that has no room for them, or the device none to gather a layer's blocks; then all stays as
    it was.
    """
    used = torch.tensor(sorted(blocks), dtype=torch.int64, device=device)
    held: list[Held] = [Whole(tensor) for tensor in _of_one_memory_each(weights)]
    held += [Blocks(tensor, used) for tensor in cache_tensors(cache)]
    needed, free = sum(one.kept_bytes for one in held), available_memory()
    if needed > free:
        raise Unavailable(f"sleeping takes {_gb(needed)} of main memory; {_gb(free)} are free.")
    transfer = Transfer(device)
    with torch.inference_mode(False), torch.no_grad():
        try:
            for one in held:
                one.keep(transfer)
        except torch.OutOfMemoryError as error:
            raise Unavailable(
                f"falling asleep takes some of the GPU's memory for a moment; {_gb(_free(device))} are free."
            ) from error
        for one in held:
            one.release()
    _give_back(device)
    return Offloaded(held, device)


def cache_tensors(cache: KVCache) -> list[Tensor]:
    return [*cache.keys, *cache.values, *(cache.key_scales or ()), *(cache.value_scales or ())]


def _restore(held: Iterable[Held], device: torch.device) -> None:
    transfer = Transfer(device)
    with torch.inference_mode(False), torch.no_grad():
        for one in held:
            one.restore(transfer)
    transfer.wait()


def _bytes_of(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor is a view of, uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())  # type: ignore[call-overload]


def _of_one_memory_each(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tied and fused ones share theirs."""
    found = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()}
    return list(found.values())


def _give_back(device: torch.device) -> None:
    """PyTorch keeps what was freed for itself, until it is told."""
    if is_gpu(device):
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if is_gpu(device) else available_memory()


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
