"""Rotary embedding: with head norms and the write into the KV cache for serving, by itself for training."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.eight_bits import levels, rounded, scale_of
from coserve.kernels.gpu.target import await_earlier, early, let_next
from coserve.kernels.paged import BLOCK_SIZE, KVCache, PagedLayout

_PAGE = tl.constexpr(BLOCK_SIZE)


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
    """Norm (if asked) and rotate the queries in place; the keys too, which go with the values into the cache.

    qkv [rows, (heads + 2 kv_heads) * head_dim] contiguous; cos, sin [positions, head_dim / 2] float32 contiguous.
    Into a cache of 8-bit floats each token's key and value of each head go with a scale of their own.
    """
    dim, group = qkv.shape[1] // (heads + 2 * kv_heads), heads // kv_heads
    keys, values = cache.keys[layer], cache.values[layer]
    key_scales = None if cache.key_scales is None else cache.key_scales[layer]
    value_scales = None if cache.value_scales is None else cache.value_scales[layer]
    _rope_and_store[(qkv.shape[0], kv_heads)](
        qkv,
        q_norm,
        k_norm,
        eps,
        cos,
        sin,
        layout.positions,
        layout.slots,
        (keys, values, key_scales, value_scales, keys.stride(), values.stride()),
        GROUP=group,
        GROUP_PADDED=triton.next_power_of_2(group),
        DIM=dim,
        HALF_PADDED=triton.next_power_of_2(dim // 2),
        LEVELS=levels(keys.dtype) if key_scales is not None else 0.0,
        num_warps=1 if group * dim <= 256 else 4,
        **early(),
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al., 2021), halves convention. x [rows, heads, dim]; cos, sin [rows, dim / 2] float32."""
    return _launch_rotate(x, cos, sin, 1.0)


def rotate_gradient(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of x: the rotation the other way."""
    return _launch_rotate(grad, cos, sin, -1.0)


def _launch_rotate(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    x, out = x.contiguous(), x.new_empty(x.shape)
    rows, heads, dim = x.shape
    shape = {"HEADS": triton.next_power_of_2(heads), "HALF_PADDED": triton.next_power_of_2(dim // 2)}
    _rotate[(rows,)](x, cos.contiguous(), sin.contiguous(), out, way, heads, dim // 2, **shape)
    return out


@triton.jit
def _turned(x, at, mask, norm, cosine, sine, eps, DIM: tl.constexpr, HALF_PADDED: tl.constexpr):
    """Heads [n, dim] at `at` [n, HALF_PADDED], normed if there is a norm and rotated: the two halves in float32."""
    half = tl.arange(0, HALF_PADDED)
    dtype: tl.constexpr = x.dtype.element_ty
    a = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + at + DIM // 2, mask=mask, other=0.0).to(tl.float32)
    if norm is not None:
        inside = half < DIM // 2
        scale = 1 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / DIM + eps)[:, None]
        low = tl.load(norm + half, mask=inside, other=0.0).to(tl.float32)[None, :]
        high = tl.load(norm + half + DIM // 2, mask=inside, other=0.0).to(tl.float32)[None, :]
        a = ((a * scale).to(dtype).to(tl.float32) * low).to(dtype).to(tl.float32)
        b = ((b * scale).to(dtype).to(tl.float32) * high).to(dtype).to(tl.float32)
    return a * cosine - b * sine, b * cosine + a * sine


@triton.jit
def turned_whole(x, at, dims, norm, cosine, sine, eps, DIM: tl.constexpr):
    """Heads whose first elements are at `at` [n, 1], normed if there is a norm and rotated, as `_rope_and_store` does:
    [n, dims] in x's format. cosine, sine: [1, dims], the halves alike."""
    dtype: tl.constexpr = x.dtype.element_ty
    inside = (dims < DIM)[None, :]
    other = tl.where(dims < DIM // 2, dims + DIM // 2, dims - DIM // 2)
    here = tl.load(x + at + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    there = tl.load(x + at + other[None, :], mask=inside, other=0.0).to(tl.float32)
    if norm is not None:
        scale = 1 / tl.sqrt(tl.sum(here * here, 1) / DIM + eps)[:, None]
        of_here = tl.load(norm + dims, mask=dims < DIM, other=0.0).to(tl.float32)[None, :]
        of_there = tl.load(norm + other, mask=dims < DIM, other=0.0).to(tl.float32)[None, :]
        here = ((here * scale).to(dtype).to(tl.float32) * of_here).to(dtype).to(tl.float32)
        there = ((there * scale).to(dtype).to(tl.float32) * of_there).to(dtype).to(tl.float32)
    first = (dims < DIM // 2)[None, :]
    return (here * cosine + tl.where(first, -there, there) * sine).to(dtype)


@triton.jit
def _rope_and_store(
    qkv,
    q_norm,
    k_norm,
    eps,
    cos,
    sin,
    positions,
    slots,
    cached,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    LEVELS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One key head of one row, and the query heads that share it. Grid: rows, kv heads."""
    await_earlier(EARLY)
    keys, values, key_scales, value_scales, k_strides, v_strides = cached
    k_block, k_head, k_dim, k_token = k_strides
    v_block, v_head, v_token, v_dim = v_strides
    HALF: tl.constexpr = DIM // 2
    row, head, kv_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    half, member = tl.arange(0, HALF_PADDED), tl.arange(0, GROUP_PADDED)
    inside = half < HALF
    angle = tl.load(positions + row).to(tl.int64) * HALF + half
    cosine = tl.load(cos + angle, mask=inside, other=0.0)[None, :]
    sine = tl.load(sin + angle, mask=inside, other=0.0)[None, :]
    qkv += row.to(tl.int64) * (kv_heads * (GROUP + 2) * DIM)

    at = (head * GROUP + member)[:, None] * DIM + half[None, :]
    mask = (member < GROUP)[:, None] & inside[None, :]
    a, b = _turned(qkv, at, mask, q_norm, cosine, sine, eps, DIM, HALF_PADDED)
    tl.store(qkv + at, a.to(qkv.dtype.element_ty), mask=mask)
    tl.store(qkv + at + HALF, b.to(qkv.dtype.element_ty), mask=mask)

    let_next(EARLY)
    slot = tl.load(slots + row)
    block, token = (slot // _PAGE).to(tl.int64), slot % _PAGE
    at = (kv_heads * GROUP + head) * DIM + half[None, :]
    mask = inside[None, :]
    a, b = _turned(qkv, at, mask, k_norm, cosine, sine, eps, DIM, HALF_PADDED)
    scales_at = (block * kv_heads + head) * _PAGE + token
    _put(
        keys + block * k_block + head * k_head + token * k_token,
        key_scales,
        scales_at,
        a,
        b,
        mask,
        k_dim,
        qkv,
        HALF,
        LEVELS,
    )
    at += kv_heads * DIM
    a = tl.load(qkv + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(qkv + at + HALF, mask=mask, other=0.0).to(tl.float32)
    to = values + block * v_block + head * v_head + token * v_token
    _put(to, value_scales, scales_at, a, b, mask, v_dim, qkv, HALF, LEVELS)


@triton.jit
def _put(to, scales, scales_at, a, b, mask, stride, like, HALF: tl.constexpr, LEVELS: tl.constexpr):
    """Two halves [1, HALF_PADDED] of a head into the cache: rounded to the format of `like`, then to the cache's."""
    dtype: tl.constexpr = to.dtype.element_ty
    half = tl.arange(0, a.shape[1])[None, :]
    a, b = a.to(like.dtype.element_ty).to(tl.float32), b.to(like.dtype.element_ty).to(tl.float32)
    if scales is not None:
        scale = scale_of(tl.join(a, b), LEVELS)
        tl.store(scales + scales_at, scale)
        a, b = rounded(a, scale, dtype), rounded(b, scale, dtype)
    tl.store(to + half * stride, a.to(dtype), mask=mask)
    tl.store(to + (half + HALF) * stride, b.to(dtype), mask=mask)


@triton.jit
def _rotate(x, cos, sin, out, way, heads, half_dim, HEADS: tl.constexpr, HALF_PADDED: tl.constexpr):
    """Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    head, half = tl.arange(0, HEADS), tl.arange(0, HALF_PADDED)
    inside = half < half_dim
    cosine = tl.load(cos + row * half_dim + half, mask=inside, other=0.0)[None, :]
    sine = tl.load(sin + row * half_dim + half, mask=inside, other=0.0)[None, :] * way
    mask = (head < heads)[:, None] & inside[None, :]
    at = (row * heads + head)[:, None] * 2 * half_dim + half[None, :]
    a = tl.load(x + at, mask=mask, other=0.0)
    dtype: tl.constexpr = a.dtype
    a = a.to(tl.float32)
    b = tl.load(x + at + half_dim, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (a * cosine - b * sine).to(dtype), mask=mask)
    tl.store(out + at + half_dim, (b * cosine + a * sine).to(dtype), mask=mask)
