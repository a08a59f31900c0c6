"""How quantised matrices lie in a GPU's memory. Needs no Triton.

A CPU's panels of 16 interleaved rows (`QuantizedWeight`) suit its vectors. On a GPU a program reads a tile of rows, and
a thread 16 neighbouring bytes of one: so rows lie whole, one after the other, and are made so once, when a model is
loaded. Values and scales are the same as before, bit by bit.

Tensor cores take bfloat16, in pairs of neighbours. So a row's elements are shuffled within blocks, such that a unit of
16 bits holds one element of each of a block's slices: what two neighbouring units hold of a slice becomes such a pair
by a shift, a mask and a sum, and a block becomes as many tiles as it has slices (`widening.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels.quantized import QuantizedWeight, unpack

FP8 = torch.float8_e4m3fn
FP8_MULTIPLE = 16  # of a matrix's rows and columns, for PyTorch's product
_UNIT = 16  # bits
_SLICES = (64, 32)  # columns of a slice, which shares a scale: the first where groups allow it


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """A matrix [out, in]; an element is worth `scale * q + min`, with one scale for `group` elements of a row.

    data [out, bytes]: int8, `torch.float8_e4m3fn`, or uint8 with two 4-bit integers a byte; without mins, those have 8
    added to them. In blocks of `block` columns, padded with zeros, `slice` neighbours being a slice: the unit of 16
    bits j of a block holds element j of each slice, the first one in the lowest bits.
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
        if weight.bits == 4 and mins is None:
            q = q + 8
        data = _packed(q.to(device), weight.bits, weight.group, zero=8 if weight.bits == 4 and mins is None else 0)
        scales = scales.t().contiguous().to(device)
        mins = None if mins is None else mins.t().contiguous().to(device)
        return cls(weight.bits, weight.shape, weight.group, data, scales, mins)

    @classmethod
    def in_fp8(cls, weight: Tensor) -> QuantizedRows:
        """A matrix of floats rounded to 8-bit floats, with a scale for each row."""
        most = torch.finfo(FP8).max
        scales = weight.abs().amax(1).float() / most
        steps = weight.float() / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
        return cls._of_floats(steps.clamp(-most, most).to(FP8), scales.unsqueeze(0), weight.shape[1])

    @classmethod
    def of_blocks(cls, data: Tensor, scales: Tensor, block: int = 128) -> QuantizedRows:
        """8-bit floats [out, in] with a scale for each square block [out / block, in / block] (DeepSeek-V3, 2024)."""
        if data.dtype != FP8:
            raise ValueError(f"8-bit floats are {FP8} here, not {data.dtype}")
        rows, columns = data.shape
        wanted = (-(-rows // block), -(-columns // block))
        if tuple(scales.shape) != wanted:
            raise ValueError(f"the scales are {list(scales.shape)}, where blocks of {block} need {list(wanted)}")
        by_row = scales.float().repeat_interleave(block, 0)[:rows].t().contiguous()
        return cls._of_floats(data, by_row, block)

    @classmethod
    def _of_floats(cls, data: Tensor, scales: Tensor, group: int) -> QuantizedRows:
        packed = _packed(data.view(torch.uint8), 8, group, zero=0)  # zero is zero in floats, too
        return cls(8, (data.shape[0], data.shape[1]), group, packed.view(FP8), scales)

    @property
    def name(self) -> str:
        """ "int8", "int4" or "float8"."""
        return "float8" if self.data.is_floating_point() else f"int{self.bits}"

    @property
    def grouped(self) -> bool:
        """Whether a row has more than one scale."""
        return self.group < self.shape[1]

    @property
    def slice(self) -> int:
        return _slice(self.group, self.shape[1])

    @property
    def block(self) -> int:
        return self.slice * (_UNIT // self.bits)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        named = {"data": self.data, "scales": self.scales, "mins": self.mins}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def dequantize(weight: QuantizedRows, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [out, in], by PyTorch's own ops."""
    columns = weight.shape[1]
    q = weight.data
    if weight.bits == 4:
        q = torch.stack((q & 15, q >> 4), 2).flatten(1).view(torch.int8) - (8 if weight.mins is None else 0)
    q = q.unflatten(1, (-1, weight.slice, _UNIT // weight.bits)).transpose(2, 3).flatten(1)[:, :columns]
    wide = q.float() * _spread(weight.scales, weight.group, columns)
    return (wide if weight.mins is None else wide + _spread(weight.mins, weight.group, columns)).to(dtype)


def _spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """[groups, out] -> [out, columns]."""
    return per_group.float().repeat_interleave(group, 0)[:columns].t()


def _slice(group: int, columns: int) -> int:
    """The largest slice that lies in one group, wherever in a row."""
    return next(size for size in _SLICES if group % size == 0 or group >= columns or size == _SLICES[-1])


def _packed(q: Tensor, bits: int, group: int, zero: int) -> Tensor:
    """Bytes, or integers from 0 to 15 [out, in] -> bytes, as `QuantizedRows` has them."""
    slices, size = _UNIT // bits, _slice(group, q.shape[1])
    blocks = F.pad(q, (0, -q.shape[1] % (slices * size)), value=zero).unflatten(1, (-1, slices, size))
    units = blocks.transpose(2, 3).flatten(1)
    if bits == 4:
        low, high = units.view(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
        units = low | high << 4
    return units.contiguous()
