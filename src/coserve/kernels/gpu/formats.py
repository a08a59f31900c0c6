"""How quantised matrices lie in a GPU's memory. Needs no Triton.

A CPU's panels of 16 interleaved rows (`QuantizedWeight`) suit its vectors. On a GPU a program reads a tile of rows, and
a thread 16 neighbouring bytes of one: so rows lie whole, one after the other, and are made so once, when a model is
loaded. Values and scales are the same as before, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels.quantized import QuantizedWeight, unpack

_LARGEST_E4M3 = 448.0
HALF = 32  # columns whose 4-bit integers are the low halves of as many bytes; the next 32 are the high halves


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """A matrix [out, in]; an element is worth `scale * q + min`, with one scale for `group` elements of a row.

    data, 8 bits: int8, or 8-bit floats (`of_blocks`), [out, width], `width` being `in` padded with zeros to a multiple
    of 32.
    data, 4 bits: uint8 [out, width / 2], padded to a multiple of 64. Of each 64 columns, byte j holds column j in its
    low half and column 32 + j in its high half, so that the halves of a tile are two tiles and no byte is shuffled.
    Without mins, q has 8 added to it.
    scales, mins: float16, of 8-bit floats float32, [groups, out]: a tile's rows find theirs side by side; `mins` is
    None in symmetric formats.
    """

    bits: int
    shape: tuple[int, int]
    group: int
    data: Tensor
    scales: Tensor
    mins: Tensor | None = None

    @classmethod
    def of(cls, weight: QuantizedWeight, device: torch.device | str) -> QuantizedRows:
        q, scales, mins = unpack(weight)
        if weight.bits == 4:
            q = _nibbles(q if mins is not None else q + 8, zero=0 if mins is not None else 8)
        else:
            q = F.pad(q, (0, -q.shape[1] % HALF)).contiguous()
        scales = scales.t().contiguous().to(device)
        mins = None if mins is None else mins.t().contiguous().to(device)
        return cls(weight.bits, weight.shape, weight.group, q.to(device), scales, mins)

    @classmethod
    def of_blocks(cls, data: Tensor, scales: Tensor, block: int = 128) -> QuantizedRows:
        """8-bit floats [out, in] with a scale for each square block [out / block, in / block] (DeepSeek-V3, 2024)."""
        rows, columns = data.shape
        wanted = (-(-rows // block), -(-columns // block))
        if tuple(scales.shape) != wanted:
            raise ValueError(f"the scales are {list(scales.shape)}, where blocks of {block} need {list(wanted)}")
        padded = F.pad(data.view(torch.uint8), (0, -columns % HALF)).view(data.dtype)  # zero is zero in all formats
        by_row = scales.float().repeat_interleave(block, 0)[:rows].t().contiguous()
        return cls(8, (rows, columns), block, padded, by_row)

    @classmethod
    def in_fp8(cls, weight: Tensor) -> QuantizedRows:
        """A matrix of floats rounded to `torch.float8_e4m3fn`, with a scale for each row."""
        wide = weight.float()
        scales = wide.abs().amax(1) / _LARGEST_E4M3
        steps = wide / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
        rounded = steps.clamp(-_LARGEST_E4M3, _LARGEST_E4M3).to(torch.float8_e4m3fn)
        columns = weight.shape[1]
        padded = F.pad(rounded.view(torch.uint8), (0, -columns % HALF)).view(rounded.dtype)
        return cls(8, (weight.shape[0], columns), padded.shape[1], padded, scales.unsqueeze(0))

    @property
    def name(self) -> str:
        """ "int8", "int4" or "float8"."""
        return "float8" if self.data.is_floating_point() else f"int{self.bits}"

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {"data": self.data, "scales": self.scales, "mins": self.mins}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def dequantize(weight: QuantizedRows, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [out, in], by PyTorch's own ops."""
    columns = weight.shape[1]
    if weight.bits == 8:
        q = weight.data[:, :columns]
    else:
        halves = torch.stack((weight.data & 15, weight.data >> 4), 1).unflatten(2, (-1, HALF))
        q = halves.transpose(1, 2).flatten(1)[:, :columns].view(torch.int8) - (8 if weight.mins is None else 0)
    wide = q.float() * _spread(weight.scales, weight.group, columns)
    return (wide if weight.mins is None else wide + _spread(weight.mins, weight.group, columns)).to(dtype)


def _spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """[groups, out] -> [out, columns]."""
    return per_group.float().repeat_interleave(group, 0)[:columns].t()


def _nibbles(q: Tensor, zero: int) -> Tensor:
    """0 to 15 [out, in] -> bytes [out, width / 2]."""
    blocks = F.pad(q, (0, -q.shape[1] % (2 * HALF)), value=zero).view(torch.uint8).unflatten(1, (-1, 2, HALF))
    low, high = blocks.unbind(2)
    return (low | high << 4).flatten(1).contiguous()
