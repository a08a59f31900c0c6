"""Matrices of 8- or 4-bit integers: how they are made, how they lie in memory, and the product with them.

An element is worth `scale * q + min`, with a scale (and, in asymmetric formats, a min) for each `group` of elements
along a row: the whole row ("per channel") or a multiple of 32. AWQ's, GPTQ's and GGUF's Q4 and Q8 weights are of this
form. Symmetric formats have no mins: q is signed in 8 bits, and has 8 added to it in 4 bits.

Activations are quantised on their way in, each row by itself: to 15 bits by row for 8-bit weights (16-bit products are
as fast there as 8-bit ones, and this loses nothing), to 8 bits by 32 elements for 4-bit weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels import reference
from coserve.kernels.native import library, pointer

PANEL = 16  # rows of a matrix that lie interleaved
BLOCK = 32  # elements of a row that 4-bit products sum in integers; groups are multiples of it
GROUP = 64  # elements that share a scale where we quantise to 4 bits
_LEVELS = {8: 127, 4: 7}
_ACTIVATION_LEVELS = {8: 16383, 4: 127}
_TINY = 1e-30  # activations below this count as zero: their scale's inverse is no float32


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix [out, in], packed in panels of 16 rows (padded with zeros), its columns padded to a multiple of 32.

    data, 8 bits: int8 [panels, in / 4, 16, 4], so that one vector holds four neighbours of each of the panel's rows.
    data, 4 bits: uint8 [panels, in / 4, 8, 4]; the low halves are the panel's first eight rows, the high halves the
    others.
    scales, mins: float16 [panels, groups, 16]; `mins` is None in symmetric formats.
    """

    bits: int
    shape: tuple[int, int]
    group: int  # elements along a row that share a scale
    data: Tensor
    scales: Tensor
    mins: Tensor | None = None

    @property
    def name(self) -> str:
        """ "int8" or "int4"."""
        return f"int{self.bits}"

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes + (0 if self.mins is None else self.mins.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        named = {"data": self.data, "scales": self.scales, "mins": self.mins}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def quantize(weight: Tensor, bits: int, group: int | None = None, *, symmetric: bool = True) -> QuantizedWeight:
    """Round a matrix [out, in] to the nearest of the values that its scales allow.

    `group` None: the whole row in 8 bits, 64 elements in 4.
    """
    rows, columns = weight.shape
    group = group or (_padded(columns, BLOCK) if bits == 8 else GROUP)
    groups = -(-columns // group)
    wide = F.pad(weight.detach().float(), (0, groups * group - columns)).view(rows, groups, group)
    if symmetric:
        scales, mins = _half(wide.abs().amax(-1) / _LEVELS[bits]), None
        q = _steps(wide, scales).clamp(-_LEVELS[bits], _LEVELS[bits])
    else:
        least, most = (-128, 127) if bits == 8 else (0, 15)
        low, high = wide.amin(-1).clamp(max=0), wide.amax(-1).clamp(min=0)
        scales = _half((high - low) / (most - least))
        mins = _half(low - least * scales.float())
        q = _steps(wide - mins.float().unsqueeze(-1), scales).clamp(least, most)
    return pack(q.view(rows, -1)[:, :columns], scales, mins, bits=bits, group=group)


def _half(x: Tensor) -> Tensor:
    return x.clamp(-65504, 65504).half()


def _steps(x: Tensor, scales: Tensor) -> Tensor:
    wide = scales.float().unsqueeze(-1)
    return torch.where(wide > 0, x / wide, 0.0).round()


def pack(q: Tensor, scales: Tensor, mins: Tensor | None, *, bits: int, group: int) -> QuantizedWeight:
    """A matrix from its integers [out, in] and its scales and mins [out, groups].

    q: -128 to 127 in 8 bits; in 4, -8 to 7 without mins and 0 to 15 with them. Raises `ValueError` for a group that is
    no multiple of 32.
    """
    if group % BLOCK:
        raise ValueError(f"a group of {group} elements is not a multiple of {BLOCK}")
    rows, columns = q.shape
    width, height = _padded(columns, BLOCK), _padded(rows, PANEL)
    q = F.pad(q.to(torch.int8), (0, width - columns, 0, height - rows))
    if bits == 8:
        data = q.view(-1, PANEL, width // 4, 4).permute(0, 2, 1, 3).contiguous()
    else:
        nibbles = (q if mins is not None else q + 8).view(torch.uint8).view(-1, 2, PANEL // 2, width // 4, 4)
        low, high = nibbles.permute(1, 0, 3, 2, 4)
        data = (low | high << 4).contiguous()
    packed_mins = None if mins is None else _panels(mins, height)
    return QuantizedWeight(bits, (rows, columns), group, data, _panels(scales, height), packed_mins)


def unpack(weight: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `pack` made it of: q int8 [out, in], scales and mins float16 [out, groups]."""
    rows, columns = weight.shape
    mins = None if weight.mins is None else _unpanelled(weight.mins)[:rows]
    if weight.bits == 8:
        q = weight.data.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    else:
        nibbles = torch.stack((weight.data & 15, weight.data >> 4), 1)  # [panels, 2, in / 4, 8, 4]
        q = nibbles.permute(0, 1, 3, 2, 4).flatten(3).flatten(0, 2).view(torch.int8) - (8 if mins is None else 0)
    return q[:rows, :columns], _unpanelled(weight.scales)[:rows], mins


def _padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _panels(per_row: Tensor, height: int) -> Tensor:
    """[rows, groups] -> [panels, groups, 16]."""
    padded = F.pad(per_row.half(), (0, 0, 0, height - per_row.shape[0]))
    return padded.view(-1, PANEL, per_row.shape[1]).transpose(1, 2).contiguous()


def _unpanelled(panels: Tensor) -> Tensor:
    return panels.transpose(1, 2).flatten(0, 1)


def cat(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Matrices of one format and width, one below the other."""
    first = weights[0]
    if any((w.bits, w.group, w.shape[1], w.mins is None) != _kind(first) for w in weights):
        raise ValueError("only matrices of one format and width lie one below the other")
    if any(w.shape[0] % PANEL for w in weights[:-1]):
        q, scales, mins = zip(*map(unpack, weights), strict=True)
        all_mins = None if first.mins is None else torch.cat(mins)
        return pack(torch.cat(q), torch.cat(scales), all_mins, bits=first.bits, group=first.group)
    rows = sum(w.shape[0] for w in weights)
    named = {name: torch.cat([w.tensors()[name] for w in weights]) for name in first.tensors()}
    return QuantizedWeight(first.bits, (rows, first.shape[1]), first.group, **named)


def _kind(w: QuantizedWeight) -> tuple[int, int, int, bool]:
    return w.bits, w.group, w.shape[1], w.mins is None


def dequantize(weight: QuantizedWeight) -> Tensor:
    """The matrix in float32 [out, in]."""
    lib = library() if weight.data.device.type == "cpu" else None
    if lib is None:
        return dequantize_by_torch(weight)
    out = torch.empty(weight.shape)
    parts = (pointer(t) for t in (weight.data, weight.scales, weight.mins, out))
    lib.coserve_dequantize(*parts, weight.bits, weight.group, *weight.shape)
    return out


def dequantize_by_torch(weight: QuantizedWeight) -> Tensor:
    q, scales, mins = unpack(weight)
    columns = q.shape[1]
    wide = q.float() * _spread(scales, weight.group, columns)
    return wide if mins is None else wide + _spread(mins, weight.group, columns)


def _spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    return per_group.float().repeat_interleave(group, 1)[:, :columns]


def product(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """x [rows, in] float -> residual + x @ weight.T + bias [rows, out] in x's format. A row's result depends on nothing
    else."""
    if x.dtype != torch.float32:
        y = product(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)
        return y if residual is None else residual + y
    lib = library()
    if lib is None:
        y = reference.product(rounded(x, weight.bits), dequantize_by_torch(weight), bias)
        return y if residual is None else residual + y
    x, bias = x.contiguous(), None if bias is None else bias.float()
    residual = None if residual is None else residual.contiguous()
    y = torch.empty(x.shape[0], weight.shape[0])
    parts = (pointer(t) for t in (x, weight.data, weight.scales, weight.mins, bias, residual, y))
    lib.coserve_linear_quantized(*parts, weight.bits, weight.group, x.shape[0], *weight.shape)
    return y.to(x.dtype)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Activations as a product with `bits`-bit weights sees them, float32 [rows, in]."""
    rows, columns = x.shape
    width = _padded(columns, BLOCK)
    block = width if bits == 8 else BLOCK
    blocks = F.pad(x.float(), (0, width - columns)).view(rows, width // block, block)
    top, levels = blocks.abs().amax(-1, keepdim=True), _ACTIVATION_LEVELS[bits]
    inverse = torch.where(top > _TINY, levels / top, 0.0)
    return ((blocks * inverse).round() * (top / levels)).view(rows, width)[:, :columns]
