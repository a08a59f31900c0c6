"""The GPU kernels at a model's shapes: what `benchmarks.gpu` checks and times.

A case has several copies of its inputs, together larger than the GPU's cache, so that each launch reads from memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels import BLOCK_SIZE, KVCache, LoraLayer, LoraWeights, PagedLayout, reference
from coserve.kernels.gpu import experts, lora, products, rope, rows, sampling
from coserve.kernels.gpu.attention import paged_attention
from coserve.kernels.gpu.formats import QuantizedRows, dequantize
from coserve.kernels.gpu.penalties import NONE, PROMPT, Penalties
from coserve.kernels.quantized import quantize

_EPS = 1e-5
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """One layer of a model and what it is given; the defaults are Llama 3.1 8B's."""

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    intermediate: int = 14336
    vocab: int = 128256
    streams: tuple[int, ...] = (1, 64)
    contexts: tuple[int, ...] = (1024, 8192)
    prompt: int = 2048
    cached: int = 256 << 20  # bytes that the copies of a case's inputs should exceed

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim

    def copies(self, size: float) -> int:
        return max(1, min(64, math.ceil(self.cached / size)))


@dataclass(frozen=True)
class Case:
    name: str
    launch: Callable[[int], object]  # on that copy of the inputs
    copies: int
    bytes: float  # that a launch reads and writes at least
    flops: float
    error: Callable[[], float]  # against float64, as a part of the largest element
    limit: float
    alone: Callable[[], bool] | None = None  # whether some rows by themselves are the same to the bit


def all_cases(shape: Shape) -> Iterator[Case]:
    """On PyTorch's default device, without gradients. Made one after the other: together they would not fit."""
    for streams in shape.streams:
        for context in shape.contexts:
            yield _decode(shape, streams, context, BF16)
    yield _decode(shape, shape.streams[-1], shape.contexts[-1], torch.float8_e4m3fn)
    yield _prefill(shape)
    yield from (_norm(shape, number) for number in (shape.streams[-1], shape.prompt))
    yield _activation(shape, shape.streams[-1])
    yield _activation(shape, shape.prompt)
    yield _rope(shape, shape.streams[-1])
    for number in shape.streams:
        yield from _bfloat16(shape, number)
        yield from (_quantized(shape, number, *kind) for kind in ((8, None), (4, 128), (4, 64), (4, 32)))
        yield _fp8(shape, number)
    yield _fp8(shape, shape.prompt)
    yield _lora(shape, shape.streams[-1])
    yield from (_sampling(shape, shape.streams[-1], filtered) for filtered in (False, True))
    yield _penalties(shape, shape.streams[-1])
    yield from (_experts(shape, number) for number in (shape.streams[-1], shape.prompt))


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.double() - wanted).abs().max() / (wanted.abs().max() + 1e-30))


def _random(*shape: int, scale: float = 1.0, dtype: torch.dtype = BF16) -> Tensor:
    return (torch.randn(*shape) * scale).to(dtype)


def _same(whole: Tensor, parts: Sequence[tuple[slice, Tensor]]) -> bool:
    return all(torch.equal(whole[where], part) for where, part in parts)


def _filled_cache(s: Shape, copies: int, blocks: int, dtype: torch.dtype) -> KVCache:
    cache = KVCache(copies, blocks, s.kv_heads, s.dim, dtype, device=torch.get_default_device(), token_major=True)
    for tensors in (cache.keys, cache.values):
        for tensor in tensors:
            tensor.copy_(torch.randn(tensor.shape))
    for tensors in (cache.key_scales or [], cache.value_scales or []):
        for tensor in tensors:
            tensor.fill_(1.0)
    return cache


def _attended(s: Shape, qkv: Tensor, cache: KVCache, table: list[int], position: int) -> Tensor:
    """One sequence's rows in float64 [rows, heads * dim], a key head at a time."""
    n, group = qkv.shape[0], s.heads // s.kv_heads
    q = qkv.double().view(n, -1, s.dim)[:, : s.heads].transpose(0, 1)
    end, out = position + n, []
    seen = torch.arange(end) <= (position + torch.arange(n)).unsqueeze(1)
    for head in range(s.kv_heads):
        k = cache.keys[0][table, head].double().transpose(1, 2).flatten(0, 1)[:end]
        v = cache.values[0][table, head].double().flatten(0, 1)[:end]
        scores = q[head * group : (head + 1) * group] @ k.t() * s.dim**-0.5
        out.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.cat(out).transpose(0, 1).flatten(1)


def _decode(s: Shape, streams: int, context: int, dtype: torch.dtype) -> Case:
    per_stream = -(-context // BLOCK_SIZE)
    size = 2.0 * streams * context * s.kv_heads * s.dim * dtype.itemsize
    copies = s.copies(size)
    cache = _filled_cache(s, copies, streams * per_stream, dtype)
    order = torch.randperm(streams * per_stream).view(streams, per_stream).tolist()
    device = torch.get_default_device()
    layout = PagedLayout.build([(context - 1, 1, table) for table in order]).to(device)
    few = 1 if streams <= 16 else streams // 2  # beyond 16 rows keys are split otherwise
    first = PagedLayout.build([(context - 1, 1, table) for table in order[:few]]).to(device)
    qkv = _random(streams, s.qkv)

    def launch(copy: int, rows: slice = slice(None), where: PagedLayout = layout) -> Tensor:
        return paged_attention(qkv[rows], where, cache, copy, s.heads, s.kv_heads, s.dim**-0.5)

    def wanted() -> Tensor:
        return torch.cat([_attended(s, qkv[i : i + 1], cache, order[i], context - 1) for i in range(streams)])

    return Case(
        f"decode {streams} x {context}{', fp8 keys and values' if dtype.itemsize == 1 else ''}",
        launch,
        copies,
        size + 2 * qkv.nbytes,
        4.0 * streams * context * s.heads * s.dim,
        lambda: relative_error(launch(0), wanted()),
        2e-2,
        lambda: _same(launch(0), [(slice(few), launch(0, slice(few), first))]),
    )


def _prefill(s: Shape) -> Case:
    blocks = list(range(-(-s.prompt // BLOCK_SIZE)))
    cache, qkv = _filled_cache(s, 1, len(blocks), BF16), _random(s.prompt, s.qkv)

    def launch(_: int, start: int = 0, end: int = s.prompt) -> Tensor:
        layout = PagedLayout.build([(start, end - start, blocks)]).to(qkv.device)
        return paged_attention(qkv[start:end], layout, cache, 0, s.heads, s.kv_heads, s.dim**-0.5)

    layout = PagedLayout.build([(0, s.prompt, blocks)]).to(qkv.device)
    cut = s.prompt * 3 // 5
    return Case(
        f"prefill {s.prompt}",
        lambda _: paged_attention(qkv, layout, cache, 0, s.heads, s.kv_heads, s.dim**-0.5),
        1,
        cache.keys[0].nbytes * 2.0 + 2 * qkv.nbytes,
        2.0 * s.prompt**2 * s.heads * s.dim,  # causal: half of the pairs
        lambda: relative_error(launch(0), _attended(s, qkv, cache, blocks, 0)),
        2e-2,
        lambda: _same(launch(0), [(slice(cut), launch(0, 0, cut)), (slice(cut, None), launch(0, cut))]),
    )


def _norm(s: Shape, n: int) -> Case:
    weight, copies = _random(s.hidden), s.copies(4.0 * n * s.hidden)
    xs = [_random(n, s.hidden) for _ in range(copies)]
    return Case(
        f"rms_norm, {n} rows",
        lambda i: rows.rms_norm(xs[i], weight, _EPS),
        copies,
        2.0 * xs[0].nbytes,
        0,
        lambda: relative_error(
            rows.rms_norm(xs[0], weight, _EPS), reference.rms_norm(xs[0].double(), weight.double(), _EPS)
        ),
        1e-2,
        lambda: _same(rows.rms_norm(xs[0], weight, _EPS), [(slice(1), rows.rms_norm(xs[0][:1], weight, _EPS))]),
    )


def _activation(s: Shape, n: int) -> Case:
    copies = s.copies(6.0 * n * s.intermediate)
    xs = [_random(n, 2 * s.intermediate) for _ in range(copies)]
    return Case(
        f"silu_and_mul, {n} rows",
        lambda i: rows.silu_and_mul(xs[i]),
        copies,
        1.5 * xs[0].nbytes,
        0,
        lambda: relative_error(rows.silu_and_mul(xs[0]), reference.silu_and_mul(xs[0].double())),
        1e-2,
        lambda: _same(rows.silu_and_mul(xs[0]), [(slice(1), rows.silu_and_mul(xs[0][:1]))]),
    )


def _rope(s: Shape, n: int) -> Case:
    copies, blocks = s.copies(4.0 * n * s.qkv), -(-n // BLOCK_SIZE)
    cache = _filled_cache(s, copies, blocks, BF16)
    qkvs, norm, angle = [_random(n, s.qkv) for _ in range(copies)], _random(s.dim), torch.randn(n, s.dim // 2)
    layout = PagedLayout.build([(0, n, list(range(blocks)))]).to(angle.device)
    cos, sin = angle.cos(), angle.sin()

    def launch(copy: int) -> None:
        rope.rope_and_store(qkvs[copy], norm, norm, _EPS, cos, sin, layout, cache, copy, s.heads, s.kv_heads)

    def error() -> float:
        before = qkvs[0].double()
        launch(0)
        q, k, _ = reference.split_heads(before, s.heads, s.kv_heads, norm.double(), norm.double(), _EPS, cos, sin)
        stored = cache.keys[0].permute(0, 3, 1, 2).flatten(0, 1)[:n]
        ours = qkvs[0][:, : s.heads * s.dim].view(q.shape)
        return max(relative_error(ours, q), relative_error(stored, k))

    return Case(f"norms, rope, KV write, {n} rows", launch, copies, 2.0 * qkvs[0].nbytes, 0, error, 1e-2)


def _product(
    name: str,
    s: Shape,
    n: int,
    weights: Sequence[object],
    size: float,
    product: Callable[[Tensor, object], Tensor],
    wide: Callable[[], Tensor],
    limit: float,
    *,
    promises_rows: bool = True,
) -> Case:
    x = _random(n, s.hidden)

    def alone() -> bool:
        whole = product(x, weights[0])
        return _same(
            whole, [(slice(1), product(x[:1], weights[0])), (slice(n // 2, n), product(x[n // 2 :], weights[0]))]
        )

    return Case(
        f"{name}, {n} rows",
        lambda i: product(x, weights[i]),
        len(weights),
        size,
        2.0 * n * s.hidden * s.intermediate,
        lambda: relative_error(product(x, weights[0]), x.double() @ wide().t()),
        limit,
        alone if promises_rows else None,
    )


def _bfloat16(s: Shape, n: int) -> Iterator[Case]:
    """With PyTorch's own to compare with."""
    size = 2.0 * s.hidden * s.intermediate
    weights = [_random(s.intermediate, s.hidden, scale=s.hidden**-0.5) for _ in range(s.copies(size))]
    wide = weights[0].double
    few = n <= products.FEW_ROWS
    yield _product("bf16 product", s, n, weights, size, products.product, wide, 1e-2, promises_rows=few)
    yield _product("bf16 product (PyTorch)", s, n, weights, size, F.linear, wide, 1e-2, promises_rows=False)


def _quantized(s: Shape, n: int, bits: int, group: int | None) -> Case:
    device = torch.get_default_device()
    matrix = quantize(_random(s.intermediate, s.hidden, scale=s.hidden**-0.5), bits, group)
    first = QuantizedRows.of(matrix, device)
    weights = [first] + [_copied(first) for _ in range(s.copies(first.nbytes) - 1)]
    name = f"int{bits} product, {f'groups of {group}' if group else 'by row'}"
    wide = lambda: dequantize(first).double()  # noqa: E731
    return _product(name, s, n, weights, float(first.nbytes), products.product, wide, 1e-2)


def _copied(w: QuantizedRows) -> QuantizedRows:
    mins = None if w.mins is None else w.mins.clone()
    return QuantizedRows(w.bits, w.shape, w.group, w.data.clone(), w.scales.clone(), mins)


def _fp8(s: Shape, n: int) -> Case:
    size = 1.0 * s.hidden * s.intermediate
    matrices = [_random(s.intermediate, s.hidden, scale=s.hidden**-0.5) for _ in range(s.copies(size))]
    weights = [QuantizedRows.in_fp8(matrix) for matrix in matrices]
    wide, few = matrices[0].double, n <= products.FEW_PACKED_ROWS
    return _product("fp8 product", s, n, weights, size, products.product, wide, 6e-2, promises_rows=few)


def _lora(s: Shape, n: int, rank: int = 16) -> Case:
    """Every row has an adapter of its own."""
    parts = [("q_proj", 0, s.hidden)]

    def adapter() -> LoraLayer:
        a, b = _random(rank, s.hidden, scale=s.hidden**-0.5), _random(s.hidden, rank)
        return LoraLayer({"q_proj": LoraWeights(a, b, 0.5)})

    device = torch.get_default_device()
    layers = [adapter() for _ in range(n)]
    stack = lora.LoraStack.of(layers, parts, s.hidden, BF16, device)
    tiles = lora.lora_tiles([(i, i + 1, i) for i in range(n)], device)
    x, y = _random(n, s.hidden), _random(n, s.hidden)

    def applied(rows_: slice, where: Tensor) -> Tensor:
        out = y[rows_].clone()
        lora.add_lora(out, x[rows_], stack, where)
        return out

    def error() -> float:
        low = torch.einsum("nk,nrk->nr", x.double(), stack.a[:, 0].double())
        wanted = y.double() + 0.5 * torch.einsum("nr,nor->no", low, stack.b.double())
        return relative_error(applied(slice(None), tiles), wanted)

    return Case(
        f"adapters of rank {rank}, {n} rows, one each",
        lambda _: lora.add_lora(y, x, stack, tiles),
        1,
        float(stack.a.nbytes + stack.b.nbytes + x.nbytes + 2 * y.nbytes),
        4.0 * n * rank * s.hidden,
        error,
        1e-2,
        lambda: _same(applied(slice(None), tiles), [(slice(1), applied(slice(1), tiles[:1]))]),
    )


def _sampling(s: Shape, n: int, filtered: bool) -> Case:
    """Wrong tokens are counted: the draws are far from any border but in rare cases."""
    copies = s.copies(2.0 * n * s.vocab)
    logits = [_random(n, s.vocab, scale=3.0) for _ in range(copies)]
    full = torch.ones(n)
    top_k = torch.full((n,), 50 if filtered else 0, dtype=torch.int32)
    uniform = torch.rand(n)

    def launch(copy: int) -> Tensor:
        return sampling.sample(logits[copy], full, top_k, full, full * 0, uniform, filtered=filtered)

    def error() -> float:
        probs, ids = logits[0].double().softmax(-1), None
        if filtered:
            probs, ids = probs.topk(50)
        cumulative = probs.cumsum(-1)
        target = uniform.double().unsqueeze(1) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target)
        tokens = (drawn if ids is None else ids.gather(1, drawn)).squeeze(1)
        alike = logits[0].gather(1, tokens.unsqueeze(1)) == logits[0].gather(1, launch(0).unsqueeze(1))
        return float((~alike).sum()) / n

    name = f"sampling, {n} rows{', top_k' if filtered else ''}"
    return Case(name, launch, copies, float(logits[0].nbytes), 0, error, 0.05)


def _penalties(s: Shape, n: int) -> Case:
    """Half of the rows have none, and go through to the bit."""
    logits = _random(n, s.vocab, scale=3.0)
    table = Penalties.empty(n, s.vocab, logits.device)
    table.seen.copy_(torch.randint(0, 3, (n, s.vocab)))
    table.seen[:, ::7] += PROMPT
    table.biases.copy_(torch.randn(n, s.vocab))
    table.strengths.copy_(torch.tensor([1.3, 0.5, 0.25]).expand(n, 3))
    slots = torch.arange(n, dtype=torch.int32)
    slots[1::2] = NONE

    def error() -> float:
        x, count = logits.double(), (table.seen & (PROMPT - 1)).double()
        repeated = torch.where(x > 0, x / 1.3, x * 1.3)
        wanted = torch.where(table.seen != 0, repeated, x) - torch.where(count > 0, 0.5 + 0.25 * count, 0.0)
        wanted += table.biases
        wanted[1::2] = x[1::2]
        return relative_error(table.shape(logits, slots), wanted)

    moved = logits.nbytes * (1 + 2) + (table.seen.nbytes + table.biases.nbytes) / 2
    return Case(f"penalties, {n} rows, half with", lambda _: table.shape(logits, slots), 1, moved, 0, error, 1e-5)


def _experts(s: Shape, n: int, number: int = 32, k: int = 4) -> Case:
    width = s.intermediate // 8
    weights, x = _random(number, width, s.hidden, scale=s.hidden**-0.5), _random(n, s.hidden)
    chosen = torch.rand(n, number).topk(k).indices
    assignment = experts.Assignment.of(chosen, number)

    def product(rows_: slice, where: experts.Assignment) -> Tensor:
        return experts.grouped_product(x[rows_], weights, where, gather=True)[where.places.flatten().long()]

    def error() -> float:
        wanted = torch.empty(n, k, width, dtype=torch.float64)
        for expert in range(number):
            row, place = (chosen == expert).nonzero(as_tuple=True)
            wanted[row, place] = x[row].double() @ weights[expert].double().t()
        return relative_error(product(slice(None), assignment), wanted.flatten(0, 1))

    used = min(number, n * k)
    return Case(
        f"{k} of {number} experts, {n} rows",
        lambda _: experts.grouped_product(x, weights, assignment, gather=True),
        1,
        2.0 * used * width * s.hidden + 2 * n * k * width,
        2.0 * n * k * width * s.hidden,
        error,
        1e-2,
        lambda: _same(
            product(slice(None), assignment),
            [(slice(k), product(slice(1), experts.Assignment.of(chosen[:1], number)))],
        ),
    )
