"""What quantised checkpoints have in common: integers packed into words, and zero points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.quantized import BLOCK, QuantizedWeight, pack

SUPPORTED_BITS = (4, 8)


def unpack_words(words: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """int32 [rows, n] -> uint8 [rows, n * 32 / bits], the lowest bits first; `order`: where each of them belongs."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    if order is not None:
        shifts = shifts[torch.tensor(order).argsort()]
    integers = words.unsqueeze(-1) >> shifts & (1 << bits) - 1
    return integers.to(torch.uint8).flatten(1)


def from_zero_points(q: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, group: int) -> QuantizedWeight:
    """scale * (q - zero), with q from 0 to 2^bits - 1 [out, in], scales and zeros [out, groups].

    `zeros` None: the middle, 2^(bits - 1). Exact if all of them are; else as exact as a float16 for scale * zero is.
    Raises `ValueError` where there are not as many scales or zeros as groups.
    """
    for name, found in (("scales", scales), ("zeros", zeros)):
        wanted = (q.shape[0], -(-q.shape[1] // group))
        if found is not None and tuple(found.shape) != wanted:
            raise ValueError(f"the {name} are {list(found.shape)}, where groups of {group} need {list(wanted)}")
    middle = 1 << (bits - 1)
    if zeros is None or bool((zeros == middle).all()):
        return pack(q.to(torch.int16) - middle, scales, None, bits=bits, group=group)
    lowest = middle if bits == 8 else 0  # where the packed integers begin
    mins = (lowest - zeros.float()) * scales.float()
    return pack(q.to(torch.int16) - lowest, scales, mins, bits=bits, group=group)


def group_of(size: int, columns: int, method: str) -> int:
    """Elements that share a scale, for a `group_size` of a config; below 1, it is the whole row."""
    if size < 1:
        return -(-columns // BLOCK) * BLOCK
    if size % BLOCK:
        raise ModelError(f"config.json: {method} in groups of {size} is not supported; multiples of {BLOCK} are")
    return size
