"""Rotation, head norms and the write into either layout of the cache against float64; 8-bit caches."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import KVCache, reference
from coserve.kernels.gpu import rope
from tests.kernels.gpu.oracle import DEVICE, close
from tests.kernels.gpu.test_attention import make

DTYPES = [torch.float32, torch.bfloat16]
SEGMENTS = [(20, 1), (0, 5), (30, 3)]
EPS = 1e-6


def angles(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randn(40, dim // 2)
    return angle.cos().to(DEVICE), angle.sin().to(DEVICE)


def wanted(qkv, layout, cache, norms, rotation, heads, kv_heads):
    """The reference on float64: (queries, keys, values)."""
    wide = KVCache(1, cache.blocks, kv_heads, cache.values[0].shape[-1], torch.float64)
    for ours, theirs in ((wide.keys[0], cache.keys[0]), (wide.values[0], cache.values[0])):
        ours.copy_(theirs)
    qkv, norms = qkv.cpu().double(), [None if n is None else n.cpu().double() for n in norms]
    rotation = [t.cpu() for t in rotation]
    reference.rope_and_store(qkv, *norms, EPS, *rotation, layout.to("cpu"), wide, 0, heads, kv_heads)
    dim = cache.values[0].shape[-1]
    return qkv[:, : heads * dim], wide.keys[0], wide.values[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "token_major"),
    [(3, 3, 16, True), (9, 3, 24, True), (9, 3, 24, False), (4, 1, 64, True)],
)
@pytest.mark.parametrize("normed", [True, False])
def test_rope_and_store_equals_float64(dtype, heads, kv_heads, dim, token_major, normed):
    qkv, layout, cache = make(heads, kv_heads, dim, SEGMENTS, dtype, token_major=token_major)
    norms = [torch.randn(dim).to(dtype).to(DEVICE) if normed else None for _ in range(2)]
    rotation = angles(dim)
    queries, keys, values = wanted(qkv, layout, cache, norms, rotation, heads, kv_heads)
    before = qkv[:, heads * dim :].clone()
    rope.rope_and_store(qkv, *norms, EPS, *rotation, layout, cache, 0, heads, kv_heads)
    close(qkv[:, : heads * dim], queries, dtype)
    close(cache.keys[0], keys, dtype)
    assert torch.equal(cache.values[0].cpu().double(), values)
    assert torch.equal(qkv[:, heads * dim :], before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_8_bit_cache_gets_a_scale_for_each_token_and_head(dtype):
    heads, kv_heads, dim = 4, 2, 32
    qkv, layout, cache = make(heads, kv_heads, dim, SEGMENTS, dtype, cache_dtype=torch.float8_e4m3fn)
    qkv[0] *= 1e4
    qkv[1] = 0
    qkv[2] *= 1e-6
    rotation = angles(dim)
    _, keys, values = wanted(qkv, layout, cache, (None, None), rotation, heads, kv_heads)
    rope.rope_and_store(qkv, None, None, EPS, *rotation, layout, cache, 0, heads, kv_heads)
    block, token = layout.slots.long() // 16, layout.slots.long() % 16
    for stored, scales, exact in (
        (cache.keys[0].transpose(2, 3), cache.key_scales[0], keys.transpose(2, 3)),
        (cache.values[0], cache.value_scales[0], values),
    ):
        here = stored[block, :, token].cpu().double() * scales[block, :, token].cpu().double().unsqueeze(-1)
        there = exact[block.cpu(), :, token.cpu()]
        error, top = (here - there).abs(), there.abs().amax(-1, keepdim=True)
        assert (error <= there.abs() * 0.07 + top * 2e-3).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_and_its_gradient_equal_float64(dtype):
    x, angle = torch.randn(5, 3, 24).to(dtype).to(DEVICE), torch.randn(5, 12)
    cos, sin = angle.cos().to(DEVICE), angle.sin().to(DEVICE)
    wide = x.cpu().double()
    close(rope.rotate(x, cos, sin), reference.rotate(wide, angle.cos(), angle.sin()), dtype)
    close(rope.rotate_gradient(x, cos, sin), reference.rotate(wide, angle.cos(), -angle.sin()), dtype)
