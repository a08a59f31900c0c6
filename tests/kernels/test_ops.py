"""Every native kernel against a float64 reference, on odd shapes, tails and extreme values; and row by row alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from coserve.kernels import BLOCK_SIZE, KVCache, PagedLayout, native, ops, reference
from coserve.kernels.native import library

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def close(actual: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    scale = wanted.abs().max().item() + 1e-6
    assert (actual.double() - wanted.double()).abs().max().item() <= TOLERANCE[dtype] * scale


def test_kernels_of_other_sources_are_left_out(monkeypatch, caplog):
    """Matrices that they take for packed in their way would give wrong numbers, without a word."""
    monkeypatch.setenv("COSERVE_NATIVE", "1")
    other = SimpleNamespace(coserve_packing=lambda: native.PACKING - 1)
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: other)
    assert native.library.__wrapped__() is None and "build them again" in caplog.text


def test_the_native_library_was_built():
    assert library() is not None, "no C++ compiler? the tests must cover the kernels; set COSERVE_NATIVE=1 and rebuild"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 17), (5, 64), (130, 1000)])
def test_rms_norm_equals_float64(dtype, rows, n):
    torch.manual_seed(0)
    x, weight = (torch.randn(rows, n) * 30).to(dtype), torch.randn(n).to(dtype)
    with torch.inference_mode():
        close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x.double(), weight.double(), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_equals_float64_at_extremes_too(dtype):
    x = torch.cat((torch.linspace(-200, 200, 501), torch.linspace(-3, 3, 501))).repeat(3, 1).to(dtype)
    with torch.inference_mode():
        actual = ops.silu_and_mul(x)
    wanted = reference.silu_and_mul(x.double())
    assert torch.isfinite(actual).all()
    close(actual, wanted, dtype)


def make_case(heads, kv_heads, dim, segments, dtype, seed=0):
    """A cache with history, and the packed rows of new tokens: segments are (tokens cached already, new tokens)."""
    torch.manual_seed(seed)
    blocks = [-(-(past + new) // BLOCK_SIZE) for past, new in segments]
    order = torch.randperm(sum(blocks) + 3).tolist()
    tables, taken = [], 0
    for count in blocks:
        tables.append(order[taken : taken + count])
        taken += count
    cache = KVCache(1, sum(blocks) + 3, kv_heads, dim, dtype)
    cache.keys[0].copy_(torch.randn(cache.keys[0].shape))
    cache.values[0].copy_(torch.randn(cache.values[0].shape))
    rows = sum(new for _, new in segments)
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim).to(dtype)
    layout = PagedLayout.build([(past, new, table) for (past, new), table in zip(segments, tables, strict=True)])
    angles = torch.randn(600, dim // 2)
    return qkv, layout, cache, angles.cos(), angles.sin()


def run(module, case, heads, kv_heads, norms=(None, None), window=None):
    qkv, layout, cache, cos, sin = case
    qkv = qkv.clone()
    scale = (qkv.shape[1] // (heads + 2 * kv_heads)) ** -0.5
    with torch.inference_mode():
        module.rope_and_store(qkv, *norms, 1e-6, cos, sin, layout, cache, 0, heads, kv_heads)
        return module.paged_attention(qkv, layout, cache, 0, heads, kv_heads, scale, window)


def widened(case):
    qkv, layout, cache, cos, sin = case
    wide = KVCache(1, cache.blocks, cache.keys[0].shape[1], cache.keys[0].shape[2], torch.float64)
    wide.keys[0].copy_(cache.keys[0])
    wide.values[0].copy_(cache.values[0])
    return qkv.double(), layout, wide, cos, sin


SEGMENTS = [(0, 1), (7, 1), (15, 1), (16, 1), (300, 1), (0, 37), (5, 11), (250, 19)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (9, 3, 64), (8, 1, 128)])
@pytest.mark.parametrize("window", [None, 33])
def test_paged_attention_equals_float64(dtype, heads, kv_heads, dim, window):
    case = make_case(heads, kv_heads, dim, SEGMENTS, dtype)
    wanted = run(reference, widened(case), heads, kv_heads, window=window)
    close(run(ops, case, heads, kv_heads, window=window), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_with_head_norms_equals_float64(dtype):
    norms = (torch.randn(64).to(dtype), torch.randn(64).to(dtype))
    case = make_case(4, 2, 64, SEGMENTS, dtype)
    wanted = run(reference, widened(case), 4, 2, norms=tuple(n.double() for n in norms))
    close(run(ops, case, 4, 2, norms=norms), wanted, dtype)


def test_slots_never_written_do_not_leak_even_as_nan():
    case = make_case(4, 2, 32, [(0, 5), (0, 21)], torch.float32)
    case[2].keys[0].fill_(torch.nan)
    case[2].values[0].fill_(torch.nan)
    assert torch.isfinite(run(ops, case, 4, 2)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_a_row_is_the_same_to_the_bit_however_its_prompt_is_cut(dtype):
    heads, kv_heads, dim, total = 6, 2, 64, 90
    qkv, layout, cache, cos, sin = make_case(heads, kv_heads, dim, [(0, total)], dtype)
    table = layout.tables.tolist()
    whole = run(ops, (qkv, layout, cache, cos, sin), heads, kv_heads)
    for cuts in ([1] * total, [17, 1, 40, 32], [64, 26]):
        start, parts = 0, []
        for length in cuts:
            piece = PagedLayout.build([(start, length, table)])
            parts.append(run(ops, (qkv[start : start + length], piece, cache, cos, sin), heads, kv_heads))
            start += length
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (4, 2), (8, 1)])
@pytest.mark.parametrize("window", [None, 5, 70])
def test_what_a_row_does_not_see_does_not_reach_it(heads, kv_heads, window):
    """Not even as an infinite value, which nothing times nothing would make a NaN of."""
    total, odd, dim = 100, 77, 32
    case = make_case(heads, kv_heads, dim, [(0, total)], torch.float32)
    clean = run(ops, case, heads, kv_heads, window=window)
    case[0].view(total, -1, dim)[odd, heads + kv_heads :] = torch.inf
    touched = run(ops, case, heads, kv_heads, window=window)
    seen = (torch.arange(total) >= odd) & (torch.arange(total) < odd + (window or total))
    assert torch.equal(touched[~seen], clean[~seen]) and not touched[seen].isfinite().any()


def test_layout_of_mixed_segments():
    layout = PagedLayout.build([(20, 1, [4, 9]), (0, 3, [7])])
    assert layout.positions.tolist() == [20, 0, 1, 2]
    assert layout.slots.tolist() == [9 * 16 + 4, 7 * 16, 7 * 16 + 1, 7 * 16 + 2]
    assert layout.tiles.tolist() == [[0, 1, 20, 0], [1, 3, 0, 2]]
    assert layout.tables.dtype == torch.int32 and np.array_equal(layout.tables, [4, 9, 7])
