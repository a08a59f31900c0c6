"""A layer of one sequence on a GPU in parts, for where the slack is shorter than the whole sequence takes.

All but the attention core is by rows, and that is by heads. So a layer is six stages, each cut as small as the slack
demands:

    project    rows   norm, QKV, RoPE
    attend     heads  the attention core
    finish     rows   output projection and MLP
    unfinish   rows   gradients of those, of attention's result and of the residual
    unattend   heads  gradients of q, k, v
    unproject  rows   gradients of QKV and of the layer's input

The backward goes through the graphs of the forward as that was cut. No part is cut so small that it would hardly take
less time: every launch costs the CPU some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from coserve.kernels import LoraRows
from coserve.models.decoder import DecoderLayer
from coserve.roofline import Work
from coserve.training.packs import attend, pack
from coserve.training.passes import MicroBatchPass, grad_of
from coserve.training.stages import Stage

_MOST_ROWS, _LEAST_ROWS = 512, 128  # of a part in `finish`; in `project`, as many more as its matrix is smaller
_UNCUT_ROWS = 2048  # so long is a sequence whose heads stay together
_ATTENTION_BACKWARD = 2.5  # times the forward's arithmetic


@dataclass(frozen=True)
class _Graph:
    """From leaves to outputs, of rows or KV heads [first, last)."""

    first: int
    last: int
    leaves: Sequence[Tensor]
    outputs: Sequence[GradientEdge]


@dataclass(frozen=True)
class _Matrices:
    weights: int  # elements
    bytes: float


class SequenceParts:
    """One sequence's way through one layer, and back.

    `rope`: cos and sin of the sequence's rows. `keep`: with graphs, for a backward. `gradient_only`: it has been
    through the layer before, and only the backward is wanted.
    """

    def __init__(
        self,
        owner: MicroBatchPass,
        layer: DecoderLayer,
        sequence: int,
        rope: tuple[Tensor, Tensor],
        *,
        keep: bool,
        gradient_only: bool = False,
    ):
        self._p, self._w, self._layer = owner, owner.w, layer
        self._start, end = owner.micro.starts[sequence : sequence + 2]
        self._rows = end - self._start
        self._rope, self._keep, self._gradient_only = rope, keep, gradient_only
        self._packs = pack([self._rows], owner.m.device)
        c = layer.config
        self._heads, self._kv_heads, self._dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self._qkv: tuple[Tensor, ...] = ()
        self._attended = self._dattended = torch.empty(0)
        self._dqkv: tuple[Tensor, ...] = ()
        self._projections: list[_Graph] = []
        self._attentions: list[_Graph] = []
        self._ends: list[_Graph] = []

    def forward(self) -> Iterator[Stage]:
        finish = "train-refinish" if self._gradient_only else "train-finish"
        yield self._by_rows("train-project", self._project, self._qkv_matrix)
        yield self._by_heads("train-attend", self._attend)
        yield self._by_rows(finish, self._finish, self._mlp_matrices)

    def backward(self) -> Iterator[Stage]:
        """On entry the pass's `grad` holds the gradient of the layer's output; at the end, of its input."""
        yield self._by_graphs("train-unfinish", self._ends, self._unfinish, self._mlp_matrices)
        if self._attentions:
            yield self._by_graphs_of_heads("train-unattend", self._attentions, self._unattend)
            yield self._by_graphs("train-unproject", self._projections, self._unproject, self._qkv_matrix)

    # ---- stages -----------------------------------------------------------------------------------------------

    def _by_rows(self, kind: str, run: Callable[[int, int], None], matrices: _Matrices) -> Stage:
        more = max(1, self._mlp_matrices.weights // matrices.weights)
        parts = -(-self._rows // (_MOST_ROWS * more))
        return Stage(
            kind,
            self._rows,
            run,
            lambda a, b: Work(matrices.bytes, 2 * (b - a) * matrices.weights),
            step=_LEAST_ROWS * more,
            most=-(-self._rows // parts),  # all of about one size
        )

    def _by_heads(self, kind: str, run: Callable[[int, int], None]) -> Stage:
        step = max(1, int(self._kv_heads * min(1.0, (_UNCUT_ROWS / self._rows) ** 2)))
        return Stage(kind, self._kv_heads, run, self._attention_work, rows=self._attention_rows, step=step)

    def _by_graphs(self, kind: str, graphs: list[_Graph], back: Callable[[_Graph], None], matrices: _Matrices) -> Stage:
        times = 1 if self._p.adapter is not None else 2

        def rows(first: int, last: int) -> int:
            return graphs[last - 1].last - graphs[first].first

        def work(first: int, last: int) -> Work:
            flops = 2 * rows(first, last) * matrices.weights
            return Work(times * (last - first) * matrices.bytes, times * flops)

        return Stage(kind, len(graphs), _each(graphs, back), work, rows=rows)

    def _by_graphs_of_heads(self, kind: str, graphs: list[_Graph], back: Callable[[_Graph], None]) -> Stage:
        def rows(first: int, last: int) -> int:
            return self._attention_rows(graphs[first].first, graphs[last - 1].last)

        def work(first: int, last: int) -> Work:
            forward = self._attention_work(graphs[first].first, graphs[last - 1].last)
            return Work(forward.bytes, _ATTENTION_BACKWARD * forward.flops)

        return Stage(kind, len(graphs), _each(graphs, back), work, rows=rows)

    def _attention_work(self, first: int, last: int) -> Work:
        """Of KV heads [first, last)."""
        pairs, width = self._rows * (self._rows + 1) / 2, self._p.m.cost.attention_width
        return Work(0, 4 * pairs * width * (last - first) / self._kv_heads)

    def _attention_rows(self, first: int, last: int) -> int:
        return self._rows * (last - first)

    @property
    def _mlp_matrices(self) -> _Matrices:
        cost = self._p.m.cost
        return _Matrices(cost.mlp_weights, cost.mlp_bytes)

    @property
    def _qkv_matrix(self) -> _Matrices:
        cost = self._p.m.cost
        return _Matrices(cost.layer_weights - cost.mlp_weights, cost.layer_bytes - cost.mlp_bytes)

    # ---- forward ----------------------------------------------------------------------------------------------

    def _project(self, first: int, last: int) -> None:
        if not self._qkv:
            q, k, v = (self._w.grad.new_empty(self._rows, n, self._dim) for n in self._of_each())
            self._qkv = (q, k, v)
        with torch.set_grad_enabled(self._keep):
            x, loras = self._input(first, last)
            qkv = self._layer.project_qkv(x, loras, exact=False)
            split = self._layer.split_heads(qkv, *(t[first:last] for t in self._rope))
        for whole, part in zip(self._qkv, split, strict=True):
            whole[first:last] = part.detach()
        if split[0].requires_grad:
            edges = [get_gradient_edge(part) for part in split]
            self._projections.append(_Graph(first, last, (x,), edges))

    def _attend(self, first: int, last: int) -> None:
        if first == 0:
            self._attended = self._w.grad.new_empty(self._rows, self._heads * self._dim)
        back = bool(self._projections)
        with torch.set_grad_enabled(back):
            q, k, v = leaves = [
                whole[:, heads].detach().requires_grad_(back)
                for whole, heads in zip(self._qkv, self._head_slices(first, last), strict=True)
            ]
            out = attend(q, k, v, self._packs, self._layer.window)
        self._attended[:, self._columns(first, last)] = out.detach()
        if back:
            self._attentions.append(_Graph(first, last, leaves, (get_gradient_edge(out),)))

    def _finish(self, first: int, last: int) -> None:
        with torch.set_grad_enabled(self._keep):
            x, loras = self._input(first, last)
            attended = self._attended[first:last].detach().requires_grad_(bool(self._projections))
            out = self._layer.finish(x, attended, loras, exact=False, gradient_only=self._gradient_only)
        if not self._gradient_only:
            self._w.inputs[self._layer.index + 1][self._in_batch(first, last)] = out.detach()
        if self._keep:
            self._ends.append(_Graph(first, last, (x, attended), (get_gradient_edge(out),)))

    # ---- backward ---------------------------------------------------------------------------------------------

    def _unfinish(self, graph: _Graph) -> None:
        x, attended = graph.leaves
        grad = self._w.grad[self._in_batch(graph.first, graph.last)]
        torch.autograd.backward(graph.outputs, (grad,))
        if attended.requires_grad:
            if graph.first == 0:
                self._dattended = torch.empty_like(self._attended)
            self._dattended[graph.first : graph.last] = grad_of(attended)
        if x.requires_grad:
            grad.copy_(grad_of(x))

    def _unattend(self, graph: _Graph) -> None:
        if graph.first == 0:
            self._dqkv = tuple(torch.empty_like(whole) for whole in self._qkv)
        grad = self._dattended[:, self._columns(graph.first, graph.last)]
        torch.autograd.backward(graph.outputs, (grad,))
        slices = self._head_slices(graph.first, graph.last)
        for whole, heads, leaf in zip(self._dqkv, slices, graph.leaves, strict=True):
            whole[:, heads] = grad_of(leaf)

    def _unproject(self, graph: _Graph) -> None:
        torch.autograd.backward(graph.outputs, [whole[graph.first : graph.last] for whole in self._dqkv])
        (x,) = graph.leaves
        if x.requires_grad:
            self._w.grad[self._in_batch(graph.first, graph.last)] += grad_of(x)

    # ---- where things lie -------------------------------------------------------------------------------------

    def _input(self, first: int, last: int) -> tuple[Tensor, list[LoraRows]]:
        rows = self._in_batch(first, last)
        x = self._p.layer_input(self._layer, rows.start, rows.stop)
        return x, self._p.loras(self._layer, rows.start, rows.stop)

    def _in_batch(self, first: int, last: int) -> slice:
        """Rows of the micro-batch."""
        return slice(self._start + first, self._start + last)

    def _of_each(self) -> tuple[int, int, int]:
        """How many heads queries, keys and values have."""
        return self._heads, self._kv_heads, self._kv_heads

    def _head_slices(self, first: int, last: int) -> list[slice]:
        """Of queries, keys and values, for KV heads [first, last)."""
        return [slice(first * n // self._kv_heads, last * n // self._kv_heads) for n in self._of_each()]

    def _columns(self, first: int, last: int) -> slice:
        """Of attention's result, for KV heads [first, last)."""
        queries = self._head_slices(first, last)[0]
        return slice(queries.start * self._dim, queries.stop * self._dim)


def _each(graphs: list[_Graph], back: Callable[[_Graph], None]) -> Callable[[int, int], None]:
    """Back through graphs [first, last)."""

    def run(first: int, last: int) -> None:
        for graph in graphs[first:last]:
            back(graph)

    return run
