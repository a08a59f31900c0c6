"""PyTorch's own ops for everything that has a native kernel: what the kernels are tested against, and the fallback."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels.paged import BLOCK_SIZE, KVCache, PagedLayout

# BLAS's order of summation depends on how many rows there are: here it always has as many.
_ROWS = 16


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [rows, in] @ weight [out, in].T + bias."""
    rows = x.shape[0]
    padded = F.pad(x, (0, 0, 0, -rows % _ROWS))
    return torch.cat([F.linear(some, weight, bias) for some in padded.split(_ROWS)])[:rows]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in float32 (Zhang & Sennrich, 2019)."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def silu_and_mul(x: Tensor) -> Tensor:
    """[rows, 2n] -> [rows, n]: silu of the first half times the second."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al., 2021), halves convention. x [rows, heads, dim]; cos, sin [rows, dim / 2] float32."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def split_heads(
    qkv: Tensor,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *,
    norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm,
    turn: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate,
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [rows, (heads + 2 kv_heads) * dim] -> q, k, v [rows, heads, dim], q and k normed (if asked) and rotated."""
    rows = qkv.shape[0]
    q, k, v = qkv.view(rows, heads + 2 * kv_heads, -1).split((heads, kv_heads, kv_heads), dim=1)
    if q_norm is not None:
        q = norm(q, q_norm, eps)
    if k_norm is not None:
        k = norm(k, k_norm, eps)
    return turn(q, cos, sin), turn(k, cos, sin), v


def rope_and_store(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    layout: PagedLayout,
    cache: KVCache,
    layer: int,
    heads: int,
    kv_heads: int,
) -> None:
    positions, slots = layout.positions.long(), layout.slots.long()
    q, k, v = split_heads(qkv, heads, kv_heads, q_norm, k_norm, eps, cos[positions], sin[positions])
    qkv.view(qkv.shape[0], heads + 2 * kv_heads, -1)[:, :heads] = q
    block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    cache.keys[layer][block, :, :, offset] = k
    cache.values[layer][block, :, offset] = v


def paged_attention(
    qkv: Tensor,
    layout: PagedLayout,
    cache: KVCache,
    layer: int,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
) -> Tensor:
    rows = qkv.shape[0]
    q = qkv.view(rows, heads + 2 * kv_heads, -1)[:, :heads]
    out = torch.empty(rows, heads, q.shape[-1], dtype=q.dtype)
    for row, length, position, table in layout.tiles.tolist():
        end = position + length
        blocks = layout.tables[table : table + -(-end // BLOCK_SIZE)].long()
        k = cache.keys[layer][blocks].permute(1, 0, 3, 2).flatten(1, 2)[:, :end].float()
        v = cache.values[layer][blocks].permute(1, 0, 2, 3).flatten(1, 2)[:, :end].float()
        queries = torch.arange(position, end).unsqueeze(1)
        keys = torch.arange(end)
        seen = keys <= queries
        if window:
            seen &= keys > queries - window
        group = heads // kv_heads
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q[row : row + length].transpose(0, 1).float() @ k.transpose(1, 2) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[row : row + length] = (weights @ v).transpose(0, 1).to(q.dtype)
    return out.flatten(1)
