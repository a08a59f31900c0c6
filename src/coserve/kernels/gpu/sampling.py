"""From logits to tokens on the GPU, so that a step brings back nothing but the tokens: `engine.sampler`'s semantics.

Each row is decided by its own parameters and its own random number. Sums are in float32, where a CPU sums in float64:
a random number within 1e-6 of a border between two tokens may fall on the other side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CANDIDATES = 256  # the best tokens, among which top_k, top_p and min_p choose; a power of two
TOO_FEW = -1  # instead of a token: the candidates did not reach; sort the whole row
_TOO_FEW = tl.constexpr(TOO_FEW)
_CHUNK = 1024  # tokens of the vocabulary that one program sums up


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    *,
    filtered: bool = True,
) -> Tensor:
    """logits [rows, vocab] in any float format -> tokens int64 [rows], or `TOO_FEW`.

    By row: temperature float32 (0 = greedy), top_k int32 (0 = off), top_p and min_p float32, and uniform float32, its
    random number from [0, 1). `filtered`: whether any row has a top_k, top_p or min_p; without, nothing is sorted, and
    such a row has no token.
    """
    rows, vocab = logits.shape
    logits = logits.contiguous()
    chunks = triton.cdiv(vocab, _CHUNK)
    tops, sums = (logits.new_empty(rows, chunks, dtype=torch.float32) for _ in range(2))
    best = logits.new_empty(rows, chunks, dtype=torch.int32)
    out = logits.new_empty(rows, dtype=torch.int64)
    _sum_chunks[(rows, chunks)](logits, temperature, tops, best, sums, vocab, CHUNK=_CHUNK)
    totals = logits.new_empty(rows, 2, dtype=torch.float32)
    by_row = (temperature, top_k, top_p, min_p, uniform, totals, out, vocab)
    padded = triton.next_power_of_2(chunks)
    _draw[(rows,)](logits, tops, best, sums, *by_row, chunks, CHUNK=_CHUNK, CHUNKS=padded)
    if filtered:
        values, ids = logits.topk(min(CANDIDATES, vocab))
        _draw_candidates[(rows,)](values, ids, *by_row, values.shape[1], CANDIDATES=CANDIDATES)
    return out


@triton.jit
def _loaded(logits, at, mask):
    """In float32; NaN counts as a token that is never chosen."""
    values = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.where(values == values, values, float("-inf"))


@triton.jit
def _weights(values, top, temperature):
    """exp((values - top) / temperature), where `top` is the largest."""
    return tl.exp((values - tl.where(top == float("-inf"), 0.0, top)) / tl.where(temperature > 0, temperature, 1.0))


@triton.jit
def _pick(weights, target):
    """The first place at which the sum of the weights exceeds `target`, and not behind the last that has a weight."""
    place = tl.sum((tl.cumsum(weights, 0) <= target).to(tl.int32), 0)
    return tl.minimum(place, tl.max(tl.where(weights > 0, tl.arange(0, weights.shape[0]), 0), 0))


@triton.jit
def _filters(top_k, top_p, min_p, row, vocab):
    k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    limited = (k > 0) & (k < vocab)
    return k, p, least, limited, limited | (p < 1) | (least > 0)


@triton.jit
def _sum_chunks(logits, temperature, tops, best, sums, vocab, CHUNK: tl.constexpr):
    """Of a part of the vocabulary: the largest logit, where it is, and the sum of the weights. Grid: rows, chunks."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    values = _loaded(logits, row.to(tl.int64) * vocab + at, at < vocab)
    top = tl.max(values, 0)
    place = row * tl.num_programs(1) + chunk
    tl.store(tops + place, top)
    tl.store(best + place, tl.minimum(vocab - 1, chunk * CHUNK + tl.argmax(values, 0)))
    tl.store(sums + place, tl.sum(_weights(values, top, tl.load(temperature + row)), 0))


@triton.jit
def _draw(
    logits,
    tops,
    best,
    sums,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    totals,
    out,
    vocab,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The token of a row that is greedy or draws from the whole vocabulary; for others the largest logit and the sum
    of the weights. Grid: rows."""
    row, chunk = tl.program_id(0), tl.arange(0, CHUNKS)
    place, mask = row * chunks + chunk, chunk < chunks
    heat = tl.load(temperature + row)
    tops_here = tl.load(tops + place, mask=mask, other=float("-inf"))
    top = tl.max(tops_here, 0)
    weights = tl.load(sums + place, mask=mask, other=0.0) * _weights(tops_here, top, heat)
    total = tl.sum(weights, 0)
    tl.store(totals + row * 2, top)
    tl.store(totals + row * 2 + 1, total)
    _, _, _, _, filtered = _filters(top_k, top_p, min_p, row, vocab)
    if heat == 0:
        tl.store(out + row, tl.load(best + row * chunks + tl.argmax(tops_here, 0)).to(tl.int64))
    elif not filtered:
        target = tl.load(uniform + row) * total
        chosen = _pick(weights, target)
        target -= tl.sum(tl.where(chunk < chosen, weights, 0.0), 0)
        at = chosen * CHUNK + tl.arange(0, CHUNK)
        values = _loaded(logits, row.to(tl.int64) * vocab + at, at < vocab)
        tl.store(out + row, (chosen * CHUNK + _pick(_weights(values, top, heat), target)).to(tl.int64))
    else:
        tl.store(out + row, _TOO_FEW)


@triton.jit
def _draw_candidates(
    values,
    ids,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    totals,
    out,
    vocab,
    count,
    CANDIDATES: tl.constexpr,
):
    """The token of a row that draws from its best ones. Grid: rows."""
    row, place = tl.program_id(0), tl.arange(0, CANDIDATES)
    heat = tl.load(temperature + row)
    k, p, least, limited, filtered = _filters(top_k, top_p, min_p, row, vocab)
    if (heat > 0) & filtered:
        here = place < count
        top, total = tl.load(totals + row * 2), tl.load(totals + row * 2 + 1)
        probs = _weights(_loaded(values, row * count + place, here), top, heat) / total
        if limited:
            probs = tl.where(place < k, probs, 0.0)
            probs = probs / tl.sum(probs, 0)
        first, last = tl.max(probs, 0), tl.min(tl.where(here, probs, float("inf")), 0)
        reached = (count == vocab) | (limited & (k <= count))
        reached |= (not limited) & ((tl.sum(probs, 0) > p) | (last < least * first))
        better = tl.cumsum(probs, 0) - probs  # the mass of all better candidates
        kept = tl.where((better < p) & (probs >= least * first) | (place == 0), probs, 0.0)
        chosen = _pick(kept, tl.load(uniform + row) * tl.sum(kept, 0))
        token = tl.load(ids + row * count + chosen)
        tl.store(out + row, tl.where(reached, token, _TOO_FEW))
