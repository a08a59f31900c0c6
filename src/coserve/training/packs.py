"""Causal attention of packed sequences through PyTorch's fused attention, with its gradient; for GPUs.

Neighbouring sequences of about one length are a batch of their own. Shorter ones are padded at their end: no token
before it sees the padding, so that no mask is needed, and what comes out for the padding is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_PADDED = 1.5  # places for a token, at most: attention is a small part of a layer, a launch costs more
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Pack:
    """Sequences in rows [first, last), `longest` tokens each.

    index: int64 [count * longest], the row (from `first` on) for each place of the batch; places: int64
    [last - first], the place of each row. None, None: all are as long.
    """

    first: int
    last: int
    longest: int
    index: Tensor | None
    places: Tensor | None

    def batch(self, x: Tensor) -> Tensor:
        """Rows [last - first, heads, dim] -> [count, heads, longest, dim]."""
        x = x if self.index is None else x.index_select(0, self.index)
        return x.unflatten(0, (-1, self.longest)).transpose(1, 2)

    def rows(self, out: Tensor) -> Tensor:
        """[count, heads, longest, dim] -> [last - first, heads * dim]."""
        out = out.transpose(1, 2).flatten(2).flatten(0, 1)
        return out if self.places is None else out.index_select(0, self.places)


def pack(lengths: Sequence[int], device: torch.device) -> list[Pack]:
    """Cut sequences, one after the other in rows from 0 on, into packs."""
    runs: list[list[int]] = []
    for length in lengths:
        joined = [*runs[-1], length] if runs else []
        if joined and max(joined) * len(joined) <= _PADDED * sum(joined):
            runs[-1] = joined
        else:
            runs.append([length])
    packs, first = [], 0
    for run in runs:
        packs.append(_pack(run, first, device))
        first += sum(run)
    return packs


def _pack(lengths: Sequence[int], first: int, device: torch.device) -> Pack:
    total, longest = sum(lengths), max(lengths)
    if min(lengths) == longest:
        return Pack(first, first + total, longest, None, None)
    count = torch.tensor(lengths).unsqueeze(1)
    offsets = torch.arange(longest)
    index = (count.cumsum(0) - count) + torch.minimum(offsets, count - 1)
    places = torch.nonzero((offsets < count).flatten()).flatten()
    return Pack(first, first + total, longest, moved(index.flatten(), device), moved(places, device))


def attend(q: Tensor, k: Tensor, v: Tensor, packs: Sequence[Pack], window: int | None) -> Tensor:
    """q [rows, heads, dim], k and v [rows, kv_heads, dim] -> [rows, heads * dim]. Differentiable.

    `window`: how many keys a query sees, itself included; None = all before it.
    """
    out = []
    for p in packs:
        queries, keys, values = (p.batch(t[p.first : p.last]) for t in (q, k, v))
        seen = window if window is not None and window < p.longest else None
        out.append(p.rows(_attention(queries, keys, values, seen)))
    return out[0] if len(out) == 1 else torch.cat(out)


def _attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """[count, heads, length, dim]. Keys are repeated for their heads where no fused attention groups those."""
    if q.shape[1] != k.shape[1] and (window is not None or q.dtype not in _HALVES):
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    if window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    where = torch.arange(q.shape[2], device=q.device)
    back = where.unsqueeze(1) - where
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back < window))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. A GPU copies it when it comes to it; nobody waits."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
