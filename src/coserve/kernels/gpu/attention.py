"""Paged attention: one query token over its whole sequence (decode), and runs of tokens of a prompt (prefill).

Online softmax (Milakov & Gimelshein, 2018) over tiles of keys, as in FlashAttention-2 (Dao, 2023). A decode row's
keys are split over programs (Flash-Decoding, 2023); the last of these to arrive combines what all have found. Where the
splits lie follows from the row's own length, never from the batch, so that its numbers are the same in any company.

The heads that share a key head go through one product together. Scores are kept in powers of two: `exp2` is what the
hardware has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from coserve.kernels.gpu.arrivals import counters, last_to_arrive
from coserve.kernels.gpu.rope import rope_and_store, turned_whole
from coserve.kernels.gpu.target import await_earlier, early, let_next
from coserve.kernels.paged import BLOCK_SIZE, KVCache, PagedLayout

LEAST_SPLIT = 128  # keys, a multiple of a tile's. Of many rows more: they keep a GPU busy with fewer programs
MOST_SPLITS = 32  # of one row
_LEAST_QUERIES = 16  # what a tensor core takes
_FEW = 16  # rows that decode: they rotate in attention, too


@dataclass(frozen=True)
class Launch:
    """A tile's keys, on which the order of sums depends; the rest is a matter of speed."""

    keys: int
    warps: int
    stages: int
    queries: int = _LEAST_QUERIES  # (token, head) pairs of a prefill tile

    @property
    def options(self) -> dict[str, int]:
        return {"KEYS": self.keys, "num_warps": self.warps, "num_stages": self.stages}


DECODE_FEW = Launch(keys=128, warps=4, stages=2)  # rows: each is waited for
DECODE_MANY = Launch(keys=64, warps=4, stages=2)
PREFILL = Launch(keys=64, warps=8, stages=2, queries=128)


@dataclass(frozen=True)
class Rotation:
    """What `rope_and_store` does to a head: norms [head_dim], or none; cos, sin [positions, head_dim / 2] float32."""

    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    cos: Tensor
    sin: Tensor


_PAGE = tl.constexpr(BLOCK_SIZE)
_LOG2_E = tl.constexpr(1.4426950408889634)


def paged_attention(
    qkv: Tensor,
    layout: PagedLayout,
    cache: KVCache,
    layer: int,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of each row's query to the cached keys of its own segment -> [rows, heads * head_dim].

    qkv [rows, (heads + 2 kv_heads) * head_dim], as `rope_and_store` left it. `window`: how many keys a query sees,
    itself included; None = all. `soft_cap`: scores become cap * tanh(score / cap) (Gemma 2, 2024). `sinks` [heads]: a
    logit of each head that takes its share of the softmax and adds nothing (gpt-oss, 2025).
    """
    return _launch(qkv, None, layout, cache, layer, heads, kv_heads, scale, window, soft_cap, sinks)


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
    window: int | None = None,
) -> Tensor:
    """`rope_and_store` and `paged_attention`: in one, which leaves qkv as it is, where few rows decode and nothing else
    (else it does not pay), into a cache without scales."""
    if qkv.shape[0] == layout.decoding <= _FEW and cache.key_scales is None:
        rotation = Rotation(q_norm, k_norm, eps, cos, sin)
        return _launch(qkv, rotation, layout, cache, layer, heads, kv_heads, scale, window, None, None)
    rope_and_store(qkv, q_norm, k_norm, eps, cos, sin, layout, cache, layer, heads, kv_heads)
    return paged_attention(qkv, layout, cache, layer, heads, kv_heads, scale, window)


def _launch(
    qkv: Tensor,
    rotation: Rotation | None,
    layout: PagedLayout,
    cache: KVCache,
    layer: int,
    heads: int,
    kv_heads: int,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    dim = qkv.shape[1] // (heads + 2 * kv_heads)
    out = qkv.new_empty(qkv.shape[0], heads * dim)
    keys, values = cache.keys[layer], cache.values[layer]
    key_scales = None if cache.key_scales is None else cache.key_scales[layer]
    value_scales = None if cache.value_scales is None else cache.value_scales[layer]
    cached = (keys, values, keys.stride(), values.stride())
    group = heads // kv_heads
    shape = {
        "window": window or 0,
        "soft_cap": soft_cap,
        "GROUP": group,
        "DIM": dim,
        "DIM_PADDED": max(_LEAST_QUERIES, triton.next_power_of_2(dim)),
    }
    common = (qkv, qkv.stride(0), cached, key_scales, value_scales, layout.segments, layout.tables, scale)
    steps, others = layout.decoding, layout.segments.shape[0] - layout.decoding
    if steps:
        launch, least = (DECODE_FEW, LEAST_SPLIT) if steps <= _FEW else (DECODE_MANY, 4 * LEAST_SPLIT)
        splits = _most_splits(layout.context if window is None else min(layout.context, window), launch, least)
        partial = qkv.new_empty(steps, heads, splits, dim, dtype=torch.float32)
        tops, totals = (qkv.new_empty(steps, heads, splits, dtype=torch.float32) for _ in range(2))
        left = (partial, tops, totals, counters(qkv.device, steps * kv_heads))
        r = rotation
        turn = (r.q_norm, r.k_norm, r.eps, r.cos, r.sin) if r else (None, None, 0.0, None, None)
        _decode[(steps, kv_heads, splits)](
            *common,
            sinks,
            out,
            left,
            *turn,
            QUERIES=_decode_queries(group),
            LEAST_SPLIT=least,
            MOST_SPLITS=MOST_SPLITS,
            **shape,
            **launch.options,
            **early(),
        )
    if others:
        padded = triton.next_power_of_2(group)
        tokens = max(1, PREFILL.queries // padded)
        _prefill[(triton.cdiv(layout.longest, tokens), kv_heads, others)](
            *common, sinks, out, steps, TOKENS=tokens, GROUP_PADDED=padded, **shape, **PREFILL.options
        )
    return out


def _decode_queries(group: int) -> int:
    """Rows of a decode tile: the heads that share a key head, and what pads them."""
    return max(_LEAST_QUERIES, triton.next_power_of_2(group))


def _most_splits(keys: int, launch: Launch, least: int) -> int:
    """Enough for a row that sees so many keys, wherever in a tile the first of them lies."""
    return min(MOST_SPLITS, triton.cdiv(keys + launch.keys - 1, least))


@triton.jit
def _visible(position, window: tl.constexpr, KEYS: tl.constexpr):
    """The first key that a query sees, and the beginning of that key's tile."""
    if window > 0:
        oldest = tl.maximum(0, position - window + 1)
    else:
        oldest = 0
    return oldest, oldest // KEYS * KEYS


@triton.jit
def _attend(
    q,  # [queries, DIM_PADDED]
    positions,  # [queries]; below zero: sees nothing
    head,  # of the cache
    table,
    first,  # a multiple of the tile
    oldest,  # keys before it, and from `last` on, may hold anything, even NaN
    last,
    cached,  # keys, values, their strides
    key_scales,
    value_scales,
    scale,
    window: tl.constexpr,
    soft_cap: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Each query over the keys [first, last): the weighted values [queries, DIM_PADDED], not yet divided by the sum of
    the weights; the highest score, in powers of two; that sum."""
    keys, values, k_strides, v_strides = cached
    k_block, k_head, k_dim, k_token = k_strides
    v_block, v_head, v_token, v_dim = v_strides
    QUERIES: tl.constexpr = q.shape[0]
    dims = tl.arange(0, DIM_PADDED)
    acc = tl.zeros([QUERIES, DIM_PADDED], tl.float32)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for start in range(first, last, KEYS):
        token = start + tl.arange(0, KEYS)
        valid = (token >= oldest) & (token < last)
        block = tl.load(table + token // _PAGE, mask=valid, other=0).to(tl.int64)
        inside = token % _PAGE
        mask = valid[:, None] & (dims < DIM)[None, :]
        k_at = (block * k_block + head * k_head + inside * k_token)[:, None] + (dims * k_dim)[None, :]
        v_at = (block * v_block + head * v_head + inside * v_token)[:, None] + (dims * v_dim)[None, :]
        k = tl.load(keys + k_at, mask=mask, other=0.0)
        if value_scales is None:  # as early as the keys; in 8 bits registers are short
            v = tl.load(values + v_at, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        if key_scales is not None:
            at = block * (k_block // DIM) + head * _PAGE + inside
            scores *= tl.load(key_scales + at, mask=valid, other=0.0)[None, :]
        if soft_cap is not None:
            scores = soft_cap * (2 * tl.sigmoid(2 * scores / soft_cap) - 1)  # tanh
        scores *= _LOG2_E
        seen = valid[None, :] & (token[None, :] <= positions[:, None])
        if window > 0:
            seen &= token[None, :] > positions[:, None] - window
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen so far: no -inf from -inf
        correction = tl.exp2(top - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * correction + tl.sum(weights, 1)
        top = new_top
        if value_scales is not None:
            at = block * (v_block // DIM) + head * _PAGE + inside
            weights *= tl.load(value_scales + at, mask=valid, other=0.0)[None, :]
            v = tl.load(values + v_at, mask=mask, other=0.0)
        acc = acc * correction[:, None] + tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
    return acc, top, total


@triton.jit
def _decode(
    q,
    q_stride,
    cached,
    key_scales,  # not in the tuple: Triton 3.5 and 3.6 take no None there
    value_scales,
    segments,
    tables,
    scale,
    sinks,
    out,
    left,  # by each split for the last one: weighted values, highest scores, sums of weights; counters
    q_norm,
    k_norm,
    eps,
    cos,  # None: queries are rotated, and keys in the cache
    sin,
    window: tl.constexpr,
    soft_cap: tl.constexpr,
    QUERIES: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    LEAST_SPLIT: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A split of one row's keys, for the heads that share a key head. Grid: segments that decode, kv heads, splits."""
    # Segments are as old as the step: between them and its first attention lie several kernels.
    segment, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1) * GROUP
    row = tl.load(segments + segment * 4).to(tl.int64)
    position = tl.load(segments + segment * 4 + 2)
    table = tables + tl.load(segments + segment * 4 + 3)
    oldest, start = _visible(position, window, KEYS)
    keys = position + 1 - start
    length = tl.maximum(LEAST_SPLIT, tl.cdiv(tl.cdiv(keys, MOST_SPLITS), KEYS) * KEYS)
    splits = tl.cdiv(keys, length)
    if split >= splits:
        return
    member, dims = tl.arange(0, QUERIES), tl.arange(0, DIM_PADDED)
    head = kv_head * GROUP + member
    mask = (member < GROUP)[:, None] & (dims < DIM)[None, :]
    first = row * q_stride + tl.where(member < GROUP, head, 0)[:, None] * DIM
    if cos is not None:
        angle = position.to(tl.int64) * (DIM // 2) + dims % (DIM // 2)
        cosine = tl.load(cos + angle, mask=dims < DIM, other=0.0)[None, :]
        sine = tl.load(sin + angle, mask=dims < DIM, other=0.0)[None, :]
    await_earlier(EARLY)
    if cos is None:
        queries = tl.load(q + first + dims[None, :], mask=mask, other=0.0)
    else:
        queries = turned_whole(q, first, dims, q_norm, cosine, sine, eps, DIM)
        if split == splits - 1:  # it sees the row's own key
            own = row * q_stride + tl.full([1, 1], heads + kv_head, tl.int64) * DIM
            key = turned_whole(q, own, dims, k_norm, cosine, sine, eps, DIM)
            own += tl.num_programs(1) * DIM
            value = tl.load(q + own + dims[None, :], mask=(dims < DIM)[None, :], other=0.0)
            _store_token(key, value, dims, position, kv_head, table, cached, DIM)
            tl.debug_barrier()  # all threads see it
    acc, top, total = _attend(
        queries,
        tl.where(member < GROUP, position, -1),
        kv_head,
        table,
        start + split * length,
        oldest,
        tl.minimum(position + 1, start + (split + 1) * length),
        cached,
        key_scales,
        value_scales,
        scale,
        window,
        soft_cap,
        DIM,
        DIM_PADDED,
        KEYS,
    )
    let_next(EARLY)
    last = True
    if splits > 1:
        partial, tops, totals, counters = left
        place = (segment * heads + head).to(tl.int64) * tl.num_programs(2)
        values = partial + place[:, None] * DIM + dims[None, :]
        tl.store(values + split * DIM, acc, mask=mask)
        tl.store(tops + place + split, top, mask=member < GROUP)
        tl.store(totals + place + split, total, mask=member < GROUP)
        last = last_to_arrive(counters + segment * tl.num_programs(1) + kv_head, splits)
        if last:
            acc, top, total = _combined(values, tops + place, totals + place, splits, mask, member < GROUP, DIM)
    if last:
        at = (row * heads + head)[:, None] * DIM + dims[None, :]
        tl.store(out + at, _divided(acc, top, total, sinks, head, member < GROUP).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store_token(key, value, dims, position, head, table, cached, DIM: tl.constexpr):
    """A head's key and value [1, dims] into the cache."""
    keys, values, k_strides, v_strides = cached
    k_block, k_head, k_dim, k_token = k_strides
    v_block, v_head, v_token, v_dim = v_strides
    block, inside = tl.load(table + position // _PAGE).to(tl.int64), position % _PAGE
    mask = (dims < DIM)[None, :]
    k_at = block * k_block + head * k_head + inside * k_token + (dims * k_dim)[None, :]
    v_at = block * v_block + head * v_head + inside * v_token + (dims * v_dim)[None, :]
    tl.store(keys + k_at, key.to(keys.dtype.element_ty), mask=mask)
    tl.store(values + v_at, value.to(values.dtype.element_ty), mask=mask)


@triton.jit
def _combined(values, tops, totals, splits, mask, wanted, DIM: tl.constexpr):
    """What `_attend` would have found in all splits, first to last."""
    acc = tl.zeros(mask.shape, tl.float32)
    top = tl.full(wanted.shape, float("-inf"), tl.float32)
    total = tl.zeros(wanted.shape, tl.float32)
    for split in tl.range(splits, loop_unroll_factor=4):
        its_top = tl.load(tops + split, mask=wanted, other=0.0, cache_modifier=".cg")
        its_total = tl.load(totals + split, mask=wanted, other=1.0, cache_modifier=".cg")
        its_values = tl.load(values + split * DIM, mask=mask, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, its_top)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        correction, weight = tl.exp2(top - base), tl.exp2(its_top - base)
        total = total * correction + its_total * weight
        acc = acc * correction[:, None] + its_values * weight[:, None]
        top = new_top
    return acc, top, total


@triton.jit
def _divided(acc, top, total, sinks, head, real):
    """Weighted values over the sum of the weights, to which a head's sink adds its own."""
    if sinks is not None:
        sink = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * _LOG2_E
        new_top = tl.maximum(top, sink)
        total = total * tl.exp2(top - new_top) + tl.exp2(sink - new_top)
        acc *= tl.exp2(top - new_top)[:, None]
    return acc / total[:, None]


@triton.jit(do_not_specialize=["skipped"])
def _prefill(
    q,
    q_stride,
    cached,
    key_scales,  # not in the tuple: Triton 3.5 and 3.6 take no None there
    value_scales,
    segments,
    tables,
    scale,
    sinks,
    out,
    skipped,  # segments that decode, which come first
    window: tl.constexpr,
    soft_cap: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Some tokens of one segment, for the heads that share a key head. Grid: runs of tokens, kv heads, segments."""
    kv_head, segment = tl.program_id(1), tl.program_id(2) + skipped
    rows = tl.load(segments + segment * 4 + 1)
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * TOKENS  # the last ones see most keys, and begin
    if start >= rows:
        return
    row = tl.load(segments + segment * 4).to(tl.int64)
    position = tl.load(segments + segment * 4 + 2)
    table = tables + tl.load(segments + segment * 4 + 3)
    query, dims = tl.arange(0, TOKENS * GROUP_PADDED), tl.arange(0, DIM_PADDED)
    token, member = start + query // GROUP_PADDED, query % GROUP_PADDED
    wanted = (token < rows) & (member < GROUP)
    head = kv_head * GROUP + member
    mask = wanted[:, None] & (dims < DIM)[None, :]
    at = ((row + token) * q_stride + head * DIM)[:, None] + dims[None, :]
    queries = tl.load(q + at, mask=mask, other=0.0)
    oldest, first = _visible(position + start, window, KEYS)
    acc, top, total = _attend(
        queries,
        tl.where(wanted, position + token, -1),
        kv_head,
        table,
        first,
        oldest,
        position + tl.minimum(rows, start + TOKENS),
        cached,
        key_scales,
        value_scales,
        scale,
        window,
        soft_cap,
        DIM,
        DIM_PADDED,
        KEYS,
    )
    heads = tl.num_programs(1) * GROUP
    at = ((row + token) * heads + head)[:, None] * DIM + dims[None, :]
    tl.store(out + at, _divided(acc, top, total, sinks, head, member < GROUP).to(out.dtype.element_ty), mask=mask)
