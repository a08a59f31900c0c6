"""Norms, activation (after its product, too), RoPE with the KV write, and paged attention.

By where the rows are: on a GPU in Triton; on a CPU native where built, else PyTorch's ops.

With gradients enabled, norms and activation are those of `differentiable`; the others have none.
"""

from __future__ import annotations

from ctypes import c_float, c_int64

import torch
from torch import Tensor

from coserve.kernels import differentiable, reference
from coserve.kernels.gpu import kernels_for
from coserve.kernels.linear import Loras, Parts, Weight, adapts, lora_linear
from coserve.kernels.native import kernel, pointer
from coserve.kernels.paged import BLOCK_SIZE, TILE_ROWS, KVCache, PagedLayout


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [rows, n] -> [rows, n]."""
    if torch.is_grad_enabled():
        return differentiable.rms_norm(x, weight, eps)
    if gpu := kernels_for(x):
        return gpu.rms_norm(x, weight, eps)
    run = kernel("rms_norm", x.dtype)
    if run is None:
        return reference.rms_norm(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    run(pointer(x), pointer(weight), pointer(out), x.shape[0], x.shape[1], c_float(eps))
    return out


def silu_and_mul(x: Tensor) -> Tensor:
    """x [rows, 2n] -> [rows, n]: silu of the first half times the second."""
    if torch.is_grad_enabled():
        return differentiable.silu_and_mul(x)
    if gpu := kernels_for(x):
        return gpu.silu_and_mul(x)
    run = kernel("silu_and_mul", x.dtype)
    if run is None:
        return reference.silu_and_mul(x)
    out = x.new_empty(x.shape[0], x.shape[1] // 2)
    run(pointer(x), pointer(out), x.shape[0], x.shape[1] // 2)
    return out


def gated_linear(
    x: Tensor, weight: Weight, bias: Tensor | None, parts: Parts, loras: Loras, *, exact: bool = True
) -> Tensor:
    """`silu_and_mul` of `lora_linear`, in one kernel where that is a GPU's and there are no adapters."""
    plain = exact and not torch.is_grad_enabled() and not adapts(loras, parts)
    if plain and (gpu := kernels_for(x)):
        return gpu.gated_product(x, weight, bias)
    return silu_and_mul(lora_linear(x, weight, bias, parts, loras, exact=exact))


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

    qkv [rows, (heads + 2 kv_heads) * head_dim] contiguous; cos, sin [positions, head_dim / 2] float32.
    """
    if gpu := kernels_for(qkv):
        return gpu.rope_and_store(qkv, q_norm, k_norm, eps, cos, sin, layout, cache, layer, heads, kv_heads)
    run = kernel("rope_and_store", qkv.dtype)
    if run is None:
        return reference.rope_and_store(qkv, q_norm, k_norm, eps, cos, sin, layout, cache, layer, heads, kv_heads)
    run(
        pointer(qkv),
        pointer(q_norm),
        pointer(k_norm),
        pointer(cos),
        pointer(sin),
        pointer(layout.positions),
        pointer(layout.slots),
        pointer(cache.keys[layer]),
        pointer(cache.values[layer]),
        qkv.shape[0],
        heads,
        kv_heads,
        qkv.shape[1] // (heads + 2 * kv_heads),
        c_float(eps),
    )


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
    """Causal attention of each row's query to the cached keys of its own segment -> [rows, heads * head_dim].

    qkv as `rope_and_store` left it. `window`: how many keys a query sees, itself included; None = all.
    """
    if gpu := kernels_for(qkv):
        return gpu.paged_attention(qkv, layout, cache, layer, heads, kv_heads, scale, window)
    dim = qkv.shape[1] // (heads + 2 * kv_heads)
    run = kernel("paged_attention", qkv.dtype)
    if run is None or dim % BLOCK_SIZE:
        return reference.paged_attention(qkv, layout, cache, layer, heads, kv_heads, scale, window)
    out = qkv.new_empty(qkv.shape[0], heads * dim)
    run(
        pointer(qkv),
        c_int64(qkv.shape[1]),
        pointer(cache.keys[layer]),
        pointer(cache.values[layer]),
        pointer(layout.tiles),
        layout.tiles.shape[0],
        pointer(layout.tables),
        pointer(out),
        TILE_ROWS,
        heads,
        kv_heads,
        dim,
        window or 0,
        c_float(scale),
    )
    return out


def rope_and_attend(
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
    scale: float,
    window: int | None,
) -> Tensor:
    """`rope_and_store`, then `paged_attention`; afterwards qkv may be turned, or as before."""
    if gpu := kernels_for(qkv):
        return gpu.rope_and_attend(
            qkv, q_norm, k_norm, eps, cos, sin, layout, cache, layer, heads, kv_heads, scale, window
        )
    rope_and_store(qkv, q_norm, k_norm, eps, cos, sin, layout, cache, layer, heads, kv_heads)
    return paged_attention(qkv, layout, cache, layer, heads, kv_heads, scale, window)
