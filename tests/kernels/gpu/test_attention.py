"""Paged attention against float64: both kernels, layouts, windows, caps, sinks, 8-bit caches; and row by row alone."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import BLOCK_SIZE, KVCache, PagedLayout
from coserve.kernels.gpu import attention, rope
from coserve.kernels.gpu.attention import paged_attention, rope_and_attend
from tests.kernels.gpu.oracle import DEVICE, close

DTYPES = [torch.float32, torch.bfloat16]
SEGMENTS = [(0, 1), (15, 1), (300, 1), (0, 37), (120, 19), (64, 1)]  # tokens cached already, new ones


def make(heads, kv_heads, dim, segments, dtype, *, token_major=True, cache_dtype=None):
    torch.manual_seed(0)
    blocks = [-(-(past + new) // BLOCK_SIZE) for past, new in segments]
    order = torch.randperm(sum(blocks) + 3).tolist()
    tables, taken = [], 0
    for count in blocks:
        tables.append(order[taken : taken + count])
        taken += count
    cache = KVCache(1, len(order), kv_heads, dim, cache_dtype or dtype, device=DEVICE, token_major=token_major)
    for tensor in (cache.keys[0], cache.values[0]):
        tensor.copy_(torch.randn(tensor.shape))
    if cache.key_scales is not None:
        for tensor in (cache.key_scales[0], cache.value_scales[0]):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    qkv = torch.randn(sum(new for _, new in segments), (heads + 2 * kv_heads) * dim).to(dtype).to(DEVICE)
    layout = PagedLayout.build([(past, new, table) for (past, new), table in zip(segments, tables, strict=True)])
    return qkv, layout.to(DEVICE), cache


def wanted(qkv, layout, cache, heads, kv_heads, window=None, soft_cap=None, sinks=None):
    """Written out in float64, a row at a time."""
    dim = qkv.shape[1] // (heads + 2 * kv_heads)
    q = qkv.cpu().double().view(qkv.shape[0], -1, dim)[:, :heads]
    keys, values = cache.keys[0].cpu().double().transpose(2, 3), cache.values[0].cpu().double()
    if cache.key_scales is not None:
        keys = keys * cache.key_scales[0].cpu().double().unsqueeze(-1)
        values = values * cache.value_scales[0].cpu().double().unsqueeze(-1)
    out = torch.empty(qkv.shape[0], heads, dim, dtype=torch.float64)
    for row, rows, position, table in layout.segments.tolist():
        blocks = layout.tables[table : table + -(-(position + rows) // BLOCK_SIZE)].long().cpu()
        k, v = (t[blocks].transpose(1, 2).flatten(0, 1).repeat_interleave(heads // kv_heads, 1) for t in (keys, values))
        for i in range(rows):
            end = position + i + 1
            first = 0 if window is None else max(0, end - window)
            scores = torch.einsum("hd,khd->hk", q[row + i], k[first:end]) * dim**-0.5
            if soft_cap is not None:
                scores = soft_cap * (scores / soft_cap).tanh()
            extra = torch.full((heads, 1), -torch.inf) if sinks is None else sinks.cpu().double().unsqueeze(1)
            weights = torch.cat((scores, extra), 1).softmax(1)[:, :-1]
            out[row + i] = torch.einsum("hk,khd->hd", weights, v[first:end])
    return out.flatten(1)


def run(case, heads, kv_heads, **options):
    qkv = case[0]
    dim = qkv.shape[1] // (heads + 2 * kv_heads)
    return paged_attention(*case, 0, heads, kv_heads, dim**-0.5, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 16), (9, 3, 40), (4, 1, 128)])
@pytest.mark.parametrize("window", [None, 33])
def test_attention_equals_float64(dtype, heads, kv_heads, dim, window):
    case = make(heads, kv_heads, dim, SEGMENTS, dtype)
    close(run(case, heads, kv_heads, window=window), wanted(*case, heads, kv_heads, window=window), dtype)


def test_a_cpu_s_layout_of_keys_gives_the_same():
    token_major, transposed = (make(4, 2, 32, SEGMENTS, torch.float32, token_major=t) for t in (True, False))
    assert token_major[2].keys[0].stride() != transposed[2].keys[0].stride()
    assert torch.equal(run(token_major, 4, 2), run(transposed, 4, 2))


@pytest.mark.parametrize(
    "options", [{"soft_cap": 5.0}, {"sinks": True}, {"soft_cap": 2.0, "sinks": True, "window": 20}]
)
def test_soft_cap_and_sinks_equal_float64(options):
    if "sinks" in options:
        options = options | {"sinks": torch.tensor([-3.0, 0.0, 2.0, 40.0], device=DEVICE)}
    case = make(4, 2, 16, SEGMENTS, torch.float32)
    case[0].mul_(3)
    close(run(case, 4, 2, **options), wanted(*case, 4, 2, **options), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_8_bit_cache_is_read_with_its_scales(dtype):
    case = make(4, 2, 32, SEGMENTS, dtype, cache_dtype=torch.float8_e4m3fn)
    close(run(case, 4, 2), wanted(*case, 4, 2), dtype)


def test_a_long_row_in_all_its_splits():
    case = make(2, 1, 16, [(5000, 1), (130, 1)], torch.float32)
    close(run(case, 2, 1), wanted(*case, 2, 1), torch.float32)
    close(run(case, 2, 1, window=4321), wanted(*case, 2, 1, window=4321), torch.float32)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.float8_e4m3fn])
def test_slots_never_written_do_not_leak_even_as_nan(cache_dtype):
    case = make(4, 2, 32, [(0, 5), (0, 21), (3, 1)], torch.float32, cache_dtype=cache_dtype)
    layout, cache = case[1], case[2]
    written = set()
    for _, rows, position, table in layout.segments.tolist():
        blocks = layout.tables[table:].tolist()
        written |= {(blocks[p // BLOCK_SIZE], p % BLOCK_SIZE) for p in range(position + rows)}
    for block in range(cache.blocks):
        for inside in range(BLOCK_SIZE):
            if (block, inside) not in written:
                cache.keys[0][block, :, :, inside] = torch.nan
                cache.values[0][block, :, inside] = torch.nan
                for scales in (cache.key_scales, cache.value_scales):
                    if scales is not None:
                        scales[0][block, :, inside] = torch.nan
    assert torch.isfinite(run(case, 4, 2)).all()


def test_keys_that_left_the_window_do_not_leak_even_as_nan():
    case = make(4, 2, 32, [(200, 1), (140, 9)], torch.float32)
    layout, cache = case[1], case[2]
    for start in layout.segments[:, 3].tolist():
        for block in layout.tables[start : start + 5].tolist():
            cache.keys[0][block] = cache.values[0][block] = torch.nan
    out = run(case, 4, 2, window=40)
    assert torch.isfinite(out).all()
    close(out, wanted(*case, 4, 2, window=40), torch.float32)


def test_nan_in_a_sequence_spreads_in_it_and_nowhere_else():
    case = make(4, 2, 32, [(40, 1), (40, 1), (0, 9), (0, 5)], torch.float32)
    case[0][0, 0] = torch.nan  # the first head's query of the first row
    case[0][2:11] = torch.nan
    out = run(case, 4, 2)
    assert out[0, :32].isnan().all() and torch.isfinite(out[0, 32:]).all()
    assert out[2:11].isnan().all() and torch.isfinite(out[[1, *range(11, 16)]]).all()


def test_scores_beyond_float32_s_exponents_are_survived():
    case = make(2, 1, 16, [(70, 1), (0, 20)], torch.float32)
    case[0].mul_(1e4)
    close(run(case, 2, 1), wanted(*case, 2, 1), torch.float32)


@pytest.mark.parametrize("window", [None, 50])
def test_a_row_is_the_same_to_the_bit_in_any_company(window):
    segments = [(700, 1), (0, 40), (99, 1), (33, 20)]
    qkv, layout, cache = make(6, 2, 32, segments, torch.bfloat16)
    whole, start = run((qkv, layout, cache), 6, 2, window=window), 0
    first = {row: table for row, _, _, table in layout.segments.tolist()}
    for past, new in segments:
        blocks = layout.tables[first[start] :].tolist()
        alone = PagedLayout.build([(past, new, blocks)]).to(DEVICE)
        assert torch.equal(
            run((qkv[start : start + new], alone, cache), 6, 2, window=window), whole[start : start + new]
        )
        start += new


def test_a_prompt_s_row_is_the_same_to_the_bit_however_it_is_cut():
    qkv, layout, cache = make(6, 2, 32, [(0, 90)], torch.float32)
    whole, table, start, parts = run((qkv, layout, cache), 6, 2), layout.tables.tolist(), 0, []
    for length in (17, 41, 31, 1):
        piece = PagedLayout.build([(start, length, table)], decode=[False]).to(DEVICE)
        parts.append(run((qkv[start : start + length], piece, cache), 6, 2))
        start += length
    assert torch.equal(torch.cat(parts), whole)


def test_many_rows_have_longer_splits():
    segments = [(900, 1), (40, 1), (600, 1), (511, 1), (512, 1)] * 7
    case = make(2, 1, 16, segments, torch.bfloat16)
    close(run(case, 2, 1), wanted(*case, 2, 1), torch.bfloat16)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(3, 3, 16), (9, 3, 24), (4, 1, 128)])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("token_major", [True, False])
def test_attention_turns_heads_and_fills_the_cache(heads, kv_heads, dim, normed, window, token_major):
    """What the two kernels do: the same values, keys and results as near as rounding lets them."""
    segments = [(0, 1), (15, 1), (16, 1), (300, 1), (64, 1)]
    qkv, layout, cache = make(heads, kv_heads, dim, segments, torch.bfloat16, token_major=token_major)
    other = KVCache(1, cache.blocks, kv_heads, dim, torch.bfloat16, device=DEVICE, token_major=token_major)
    for ours, theirs in ((other.keys[0], cache.keys[0]), (other.values[0], cache.values[0])):
        ours.copy_(theirs)
    norms = [(1 + 0.1 * torch.randn(dim)).bfloat16().to(DEVICE) if normed else None for _ in range(2)]
    angle = torch.randn(400, dim // 2)
    how = (*norms, 1e-6, angle.cos().to(DEVICE), angle.sin().to(DEVICE))
    turned, shape = qkv.clone(), (heads, kv_heads)
    rope.rope_and_store(turned, *how, layout, other, 0, *shape)
    wanted = paged_attention(turned, layout, other, 0, *shape, dim**-0.5, window)
    before = qkv.clone()
    got = rope_and_attend(qkv, *how, layout, cache, 0, *shape, dim**-0.5, window)
    assert torch.equal(qkv, before)
    close(cache.keys[0], other.keys[0].cpu().double(), torch.bfloat16)
    assert torch.equal(cache.values[0], other.values[0])
    close(got, wanted.cpu().double(), torch.bfloat16)


@pytest.mark.parametrize(("segments", "together"), [([(30, 1)] * 3, True), ([(30, 1), (0, 5)], False)])
def test_attention_turns_heads_where_all_rows_decode(segments, together, monkeypatch):
    qkv, layout, cache = make(4, 2, 32, segments, torch.bfloat16)
    angle = torch.randn(40, 16)
    how = (None, None, 1e-6, angle.cos().to(DEVICE), angle.sin().to(DEVICE), layout, cache, 0, 4, 2)
    called = []
    monkeypatch.setattr(attention, "rope_and_store", lambda *a: (called.append(a), rope.rope_and_store(*a)))
    rope_and_attend(qkv, *how, 32**-0.5)
    assert bool(called) != together


def test_a_row_that_turns_its_heads_does_not_know_its_company():
    qkv, layout, cache = make(4, 2, 32, [(100, 1)] * 15 + [(300, 1)], torch.bfloat16)
    angle = torch.randn(400, 16)
    rotation = (None, None, 1e-6, angle.cos().to(DEVICE), angle.sin().to(DEVICE))
    together = rope_and_attend(qkv, *rotation, layout, cache, 0, 4, 2, 32**-0.5)
    for row, past in ((0, 100), (15, 300)):
        table = layout.tables[layout.segments[row, 3] :].tolist()
        where = PagedLayout.build([(past, 1, table)]).to(DEVICE)
        alone = rope_and_attend(qkv[row : row + 1], *rotation, where, cache, 0, 4, 2, 32**-0.5)
        assert torch.equal(alone[0], together[row])
