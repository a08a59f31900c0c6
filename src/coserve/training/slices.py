"""One micro-batch's forward and backward on a CPU, cut into slices. `layer_pass` has a GPU's.

Forward: a prefill whose layer inputs are kept. Its rows ride in the engine's batches, or go through the layers a slice
at a time; either way without gradients, through the same code as inference.

Backward: for one layer at a time, last to first, from its stored input (activation checkpointing, Chen et al., 2016).
Everything but the attention core is per row, so a layer is five stages, each cut as small as the slack demands:

    project   rows    norm, QKV, RoPE, with a graph from the layer's input to q, k, v
    attend    units   attention of some heads of some sequences
    finish    rows    recompute the output projection and the MLP; gradients of them, of attention, of the residual
    unattend  units   gradients of q, k, v
    unproject rows    gradients of QKV and of the layer's input
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from coserve.engine import Ride, Slice
from coserve.engine.batch import Batch
from coserve.kernels import LoraRows
from coserve.models.decoder import Decoder, DecoderLayer
from coserve.roofline import Work
from coserve.training.attention import Attended, attention, attention_backward
from coserve.training.microbatch import MicroBatch
from coserve.training.passes import AdapterLayers, LayerInputs, Machine, MicroBatchPass, grad_of
from coserve.training.stages import Stage, Stages

_ROW_STEP = 16  # rows of the smallest slice
_CHUNK_ROWS = 512  # rows of the largest
_UNIT_SCORES = 1 << 19  # attention scores of a unit: heads * length^2 * sequences


class Workspace(LayerInputs):
    """With what the stages of a layer hand on to each other."""

    def __init__(self, decoder: Decoder, rows: int):
        super().__init__(decoder, rows)
        c, new = decoder.config, self.grad.new_empty
        q, kv = c.num_attention_heads, c.num_key_value_heads
        self.q, self.dq = (new(rows, q, c.head_dim) for _ in range(2))
        self.k, self.v, self.dk, self.dv = (new(rows, kv, c.head_dim) for _ in range(4))
        self.attended, self.dattended = (new(rows, q * c.head_dim) for _ in range(2))


@dataclass(frozen=True)
class Unit:
    """Attention of heads [first_head, last_head) (of the KV heads) over sequences of about one length.

    index: int64 [sequences, longest] rows, padded with the last row; valid: the places in it that are not padding.
    """

    index: Tensor
    valid: Tensor
    first_head: int
    last_head: int

    @property
    def pairs(self) -> int:
        return self.index.shape[0] * self.index.shape[1] ** 2

    def heads(self, group: int = 1) -> slice:
        """The unit's KV heads; with `group` query heads to each, its query heads."""
        return slice(self.first_head * group, self.last_head * group)

    def share(self, kv_heads: int) -> float:
        return (self.last_head - self.first_head) / kv_heads


def attention_units(micro: MicroBatch, kv_heads: int, group: int) -> list[Unit]:
    """Cut a micro-batch's attention: short sequences together, long ones a few heads at a time."""
    by_length = sorted(range(len(micro.starts) - 1), key=lambda i: micro.lengths()[i])
    lengths = micro.lengths()
    runs: list[list[int]] = []
    for i in by_length:
        longest = lengths[i]
        fits = runs and (len(runs[-1]) + 1) * longest**2 * kv_heads * group <= _UNIT_SCORES
        # Not with much shorter ones: padding costs as much as rows.
        if fits and lengths[runs[-1][0]] * 2 >= longest:
            runs[-1].append(i)
        else:
            runs.append([i])
    units = []
    for run in runs:
        longest = lengths[run[-1]]
        offsets = torch.arange(longest)
        count = torch.tensor([lengths[i] for i in run]).unsqueeze(1)
        start = torch.tensor([micro.starts[i] for i in run]).unsqueeze(1)
        index = start + torch.minimum(offsets, count - 1)
        heads = max(1, min(kv_heads, _UNIT_SCORES // (len(run) * longest**2 * group)))
        for first in range(0, kv_heads, heads):
            units.append(Unit(index, offsets < count, first, min(first + heads, kv_heads)))
    return units


class Pass(MicroBatchPass):
    """A pass that is cut between any two rows, and whose forward rides along in batches."""

    w: Workspace
    head_rows = 128

    def __init__(
        self,
        machine: Machine,
        micro: MicroBatch,
        workspace: Workspace,
        *,
        adapter: AdapterLayers | None,
        scale: float,
        train: bool = True,
    ):
        super().__init__(machine, micro, workspace, adapter=adapter, scale=scale, train=train)
        self._row = 0  # rows that have been through all layers
        self._chunk: Stages | None = None  # rows that are on their way through them
        c = machine.decoder.config
        self._group = c.num_attention_heads // c.num_key_value_heads
        self._rest = Stages(self._after_forward(), machine.estimator)

    @cached_property
    def _units(self) -> list[Unit]:
        return attention_units(self.micro, self.m.decoder.config.num_key_value_heads, self._group)

    # ---- what the engine sees ---------------------------------------------------------------------------------

    def ride(self, max_rows: int) -> Ride | None:
        if self._chunk is not None or self._row >= self.micro.rows:
            return None
        first, last = self._row, min(self.micro.rows, self._row + max_rows)
        segments = self.micro.segments(first, last, self.adapter(first) if self.adapter else None)

        def keep(layer: int, x: Tensor) -> None:
            self.w.inputs[layer][first:last] = x

        def done() -> None:
            self._row = last

        return Ride(segments, keep, done)

    def next_slice(self, seconds: float) -> Slice | None:
        while self._row < self.micro.rows:
            chunk = self._chunk or self._start_chunk(seconds)
            piece = chunk.next_slice(seconds)
            if piece is not None:
                return self._begun(chunk, piece)
            self._chunk = None
        self._chunk = None  # else it and the pass, of which it knows, would keep each other
        return self._rest.next_slice(seconds)

    def end(self) -> None:
        self._chunk, self._rest = None, Stages((), self.m.estimator)

    # ---- forward ----------------------------------------------------------------------------------------------

    def _begun(self, chunk: Stages, piece: Slice) -> Slice:
        """The chunk is taken only when a piece of it runs; until then its rows may still ride."""

        def run() -> None:
            self._chunk = chunk
            piece.run()

        return Slice(piece.kind, piece.rows, piece.work, run)

    def _start_chunk(self, seconds: float) -> Stages:
        """As many rows as one layer takes in `seconds`, for all layers."""
        first, left, rows = self._row, self.micro.rows - self._row, _ROW_STEP
        while rows < min(left, _CHUNK_ROWS) and self._layer_seconds(2 * rows) <= seconds:
            rows *= 2
        rows = min(left, _CHUNK_ROWS) if seconds == math.inf else min(left, rows)
        return Stages(self._forward_stage(first, first + rows), self.m.estimator)

    def _layer_seconds(self, rows: int) -> float:
        return self.m.estimator.seconds("train-forward", rows, self.m.cost.layer(rows))

    def _forward_stage(self, first: int, last: int) -> Iterator[Stage]:
        decoder, inputs = self.m.decoder, self.w.inputs
        adapter = self.adapter(first) if self.adapter else None
        batch = Batch.of(self.micro.segments(first, last, adapter))
        inputs[0][first:last] = decoder.embedded(batch.token_ids).detach()

        def run(layer: int, end: int) -> None:
            with torch.inference_mode():
                x = inputs[layer][first:last]
                for index in range(layer, end):
                    loras = [LoraRows(0, last - first, adapter[index])] if adapter else []
                    block = decoder.layers[index]
                    x = block.forward(x, batch.layout, self.m.cache, decoder.rope, loras, exact=False)
                    inputs[index + 1][first:last] = x
            if end == len(decoder.layers):
                self._row = last

        def work(layer: int, end: int) -> Work:
            one = self.m.cost.layer(last - first, batch.pairs, batch.context)
            return Work((end - layer) * one.bytes, (end - layer) * one.flops)

        yield Stage("train-forward", len(decoder.layers), run, work, rows=lambda a, b: last - first)

    # ---- backward of one layer --------------------------------------------------------------------------------

    def _backward(self, layer: DecoderLayer) -> Iterator[Stage]:
        state = _LayerBackward(self, layer)
        rows, cost, units = self.micro.rows, self.m.cost, self._units
        qkv, qkv_bytes = cost.layer_weights - cost.mlp_weights, cost.layer_bytes - cost.mlp_bytes

        def of_rows(kind: str, run: Callable[[int, int], None], moved: float, weights: int, times: int) -> Stage:
            def work(first: int, last: int) -> Work:
                return Work(times * moved, 2 * times * (last - first) * weights)

            return Stage(kind, rows, run, work, step=_ROW_STEP, most=_CHUNK_ROWS)

        def of_units(kind: str, run: Callable[[int, int], None], times: float) -> Stage:
            def pairs(first: int, last: int) -> float:
                heads = self.m.decoder.config.num_key_value_heads
                return sum(unit.pairs * unit.share(heads) for unit in units[first:last])

            def work(first: int, last: int) -> Work:
                return Work(0, 2 * times * pairs(first, last) * cost.attention_width)

            return Stage(kind, len(units), run, work, rows=lambda a, b: max(1, int(pairs(a, b)) >> 8))

        yield of_rows("train-project", state.project, qkv_bytes, qkv, 1)
        yield of_units("train-attend", state.attend, 1)
        yield of_rows("train-finish", state.finish, cost.mlp_bytes, cost.mlp_weights, 2)
        yield of_units("train-unattend", state.unattend, 2.5)
        # The graphs of `project` are gone back through as they were cut.
        yield Stage(
            "train-unproject",
            len(state.projected),
            state.unproject,
            lambda a, b: Work(qkv_bytes, 2 * qkv * state.projected_rows(a, b)),
            rows=state.projected_rows,
            most=1,
        )


@dataclass(frozen=True)
class _Projected:
    """The graph from some rows' input to their q, k and v."""

    first: int
    last: int
    x: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]


class _LayerBackward:
    """The backward of one layer: the five stages, and the graphs that live between them."""

    def __init__(self, owner: Pass, layer: DecoderLayer):
        self.p, self.w, self.layer = owner, owner.w, layer
        self.projected: list[_Projected] = []
        self._attended: list[Attended] = []
        self._wants_input = owner.wants_input_gradient(layer)

    def projected_rows(self, first: int, last: int) -> int:
        return sum(p.last - p.first for p in self.projected[first:last])

    def project(self, first: int, last: int) -> None:
        w, rope = self.w, self.p.m.decoder.rope
        positions = self._positions(first, last)
        with torch.enable_grad():
            x = self.p.layer_input(self.layer, first, last)
            qkv = self.layer.project_qkv(x, self.p.loras(self.layer, first, last))
            q, k, v = self.layer.split_heads(qkv, rope[0][positions], rope[1][positions])
        with torch.no_grad():
            w.q[first:last], w.k[first:last], w.v[first:last] = q, k, v
        self.projected.append(_Projected(first, last, x, (q, k, v)))

    def _positions(self, first: int, last: int) -> Tensor:
        starts = torch.tensor(self.p.micro.starts)
        rows = torch.arange(first, last)
        return rows - starts[torch.searchsorted(starts, rows, right=True) - 1]

    def attend(self, first: int, last: int) -> None:
        w, group, dim = self.w, self.p._group, self.w.q.shape[2]
        with torch.no_grad():
            for unit in self.p._units[first:last]:
                heads, wide = unit.heads(), unit.heads(group)
                q, k, v = (
                    t.transpose(1, 2) for t in (w.q[unit.index, wide], w.k[unit.index, heads], w.v[unit.index, heads])
                )
                out, saved = attention(q, k, v, self.layer.window)
                w.attended.view(w.rows, -1, dim)[unit.index[unit.valid], wide] = out.transpose(1, 2)[unit.valid]
                self._attended.append(saved)

    def finish(self, first: int, last: int) -> None:
        w = self.w
        with torch.enable_grad():
            x = self.p.layer_input(self.layer, first, last)
            attended = w.attended[first:last].detach().requires_grad_()
            out = self.layer.finish(x, attended, self.p.loras(self.layer, first, last), gradient_only=True)
            out.backward(w.grad[first:last].clone())
        w.dattended[first:last] = grad_of(attended)
        if self._wants_input:
            w.grad[first:last] = grad_of(x)

    def unattend(self, first: int, last: int) -> None:
        w, group, dim = self.w, self.p._group, self.w.q.shape[2]
        with torch.no_grad():
            for number in range(first, last):
                unit = self.p._units[number]
                heads, wide, rows = unit.heads(), unit.heads(group), unit.index[unit.valid]
                grad = w.dattended.view(w.rows, -1, dim)[unit.index, wide]
                grad[~unit.valid] = 0
                dq, dk, dv = attention_backward(self._attended[number], grad.transpose(1, 2))
                w.dq[rows, wide] = dq.transpose(1, 2)[unit.valid]
                w.dk[rows, heads] = dk.transpose(1, 2)[unit.valid]
                w.dv[rows, heads] = dv.transpose(1, 2)[unit.valid]

    def unproject(self, first: int, last: int) -> None:
        w = self.w
        for piece in self.projected[first:last]:
            rows = slice(piece.first, piece.last)
            wanted = [(t, g[rows]) for t, g in zip(piece.qkv, (w.dq, w.dk, w.dv), strict=True) if t.requires_grad]
            if wanted:
                torch.autograd.backward([t for t, _ in wanted], [g for _, g in wanted])
            if self._wants_input:
                w.grad[rows] += grad_of(piece.x)
