"""One micro-batch's forward and backward on a GPU: a slice is a layer of whole sequences.

A GPU wants thousands of rows at once, and launches cost a CPU time: so a layer goes through PyTorch's products and
fused attention in one piece, cut between sequences where the slack demands it, and nothing rides.

**What a step costs.** With N the elements of the matrices, a token's forward takes 2N FLOPs, and its backward 2N for
an adapter (gradients of inputs alone; those of its own small matrices are about r / width of it) or 4N for all weights.
What the backward reads of the forward is kept for as many layers as `activation_bytes` hold: about 140 kB for a token
and a layer of Llama 3.1 8B in bfloat16, 4.5 MB for all layers. A layer that is not kept is computed again, without
the last product's value: 1.5N of its own N. So an adapter costs 4N FLOPs a token where all layers are kept, 5.5N where
none is; 6N and 7.5N for all weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from coserve.engine import Ride, Slice
from coserve.kernels.memory import available_memory
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder, DecoderLayer
from coserve.roofline import Work
from coserve.training.microbatch import MicroBatch
from coserve.training.packs import Pack, attend, moved, pack
from coserve.training.passes import AdapterLayers, LayerInputs, Machine, MicroBatchPass, grad_of
from coserve.training.stages import Stage, Stages

_SHARE = 0.7  # of the free memory, for activations where nobody says how much


class Activations(LayerInputs):
    """With how many bytes may be kept of a forward (None: most of what is free)."""

    def __init__(self, decoder: Decoder, rows: int, kept_bytes: int | None = None):
        super().__init__(decoder, rows)
        self._kept_bytes = kept_bytes

    @cached_property
    def kept_bytes(self) -> int:
        """Decided when the first pass begins: before, another job may have the memory, or the engine sleep."""
        return int(_SHARE * _free_bytes(self.grad.device)) if self._kept_bytes is None else self._kept_bytes


def _free_bytes(device: torch.device) -> int:
    """What nobody has taken, and what PyTorch holds for itself."""
    if device.type == "cpu":
        return available_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def kept_bytes_per_row(config: ModelConfig, itemsize: int) -> int:
    """Bytes that the graph of one layer keeps for a row, beside the layer's input."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    norms = 2 * config.hidden_size + (q + kv if config.qk_norm else 0)  # their results
    attention = (q + 2 * kv) + (q + kv) + q  # projected; rotated; attended
    mlp = config.hidden_size + 3 * config.intermediate_size  # its input before the norm; gate, up and their product
    return itemsize * (norms + attention + mlp) + 4 * config.num_attention_heads


@dataclass(frozen=True)
class _Graph:
    """The graph from rows [first, last) of a layer's input to its output."""

    first: int
    last: int
    x: Tensor
    out: GradientEdge


class LayerPass(MicroBatchPass):
    """A pass that is cut between layers and between sequences."""

    w: Activations
    head_rows = 1024

    def __init__(
        self,
        machine: Machine,
        micro: MicroBatch,
        workspace: Activations,
        *,
        adapter: AdapterLayers | None,
        scale: float,
        train: bool = True,
    ):
        super().__init__(machine, micro, workspace, adapter=adapter, scale=scale, train=train)
        lengths, rope = micro.lengths(), machine.decoder.rope
        positions = moved(torch.cat([torch.arange(length) for length in lengths]), machine.device)
        self._cos, self._sin = rope[0][positions], rope[1][positions]
        self._packs: dict[tuple[int, int], list[Pack]] = {}
        self._graphs: dict[int, list[_Graph]] = {}
        layers = len(machine.decoder.layers)
        one = micro.rows * kept_bytes_per_row(machine.decoder.config, machine.decoder.dtype.itemsize)
        # The last ones: theirs are the first to be freed.
        self._first_kept = layers - min(layers, workspace.kept_bytes // one) if train else layers
        self._stages = Stages(itertools.chain(self._forward(), self._after_forward()), machine.estimator)

    def ride(self, max_rows: int) -> Ride | None:
        return None

    def next_slice(self, seconds: float) -> Slice | None:
        return self._stages.next_slice(seconds)

    def end(self) -> None:
        self._graphs.clear()
        self._stages = Stages((), self.m.estimator)

    def give_way(self) -> bool:
        """Free what is kept of the forward, whose layers are computed again; of later ones half as much is kept. False
        if there is nothing."""
        kept = bool(self._graphs)
        self._graphs.clear()
        self._first_kept = len(self.m.decoder.layers)
        if kept:
            self.w.kept_bytes //= 2
        return kept

    # ---- stages -----------------------------------------------------------------------------------------------

    def _forward(self) -> Iterator[Stage]:
        for layer in self.m.decoder.layers:
            yield self._of_sequences("train-layer", layer, self._run_forward, 1)

    def _backward(self, layer: DecoderLayer) -> Iterator[Stage]:
        times = 1 if self.adapter is not None else 2
        if layer.index < self._first_kept:
            yield self._of_sequences("train-recompute", layer, self._run_recompute, times + 1)
            return
        graphs = self._graphs.pop(layer.index)

        def run(first: int, last: int) -> None:
            for number in range(first, last):
                self._back_through(layer, graphs[number])

        def rows(first: int, last: int) -> int:
            return graphs[last - 1].last - graphs[first].first

        def work(first: int, last: int) -> Work:
            return self._work(graphs[first].first, graphs[last - 1].last, times)

        yield Stage("train-backward", len(graphs), run, work, rows=rows, most=1)  # freed as they are gone through

    def _of_sequences(self, kind: str, layer: DecoderLayer, run, times: int) -> Stage:
        starts = self.micro.starts
        return Stage(
            kind,
            len(starts) - 1,
            lambda a, b: run(layer, a, b),
            lambda a, b: self._work(starts[a], starts[b], times),
            rows=lambda a, b: starts[b] - starts[a],
        )

    def _work(self, first: int, last: int, times: int) -> Work:
        """Of rows [first, last) that go through a layer's products so many times."""
        starts = self.micro.starts
        inside = (b - a for a, b in itertools.pairwise(starts) if first <= a and b <= last)
        one = self.m.cost.layer(last - first, sum(length * (length + 1) / 2 for length in inside))
        return Work(times * one.bytes, times * one.flops)

    # ---- layers -----------------------------------------------------------------------------------------------

    def _run_forward(self, layer: DecoderLayer, sequence: int, end: int) -> None:
        first, last = self.micro.starts[sequence], self.micro.starts[end]
        if layer.index == 0:
            tokens = moved(self.micro.tokens[first:last], self.m.device)
            self.w.inputs[0][first:last] = self.m.decoder.embedded(tokens).detach()
        keep = layer.index >= self._first_kept
        with torch.set_grad_enabled(keep):
            x = self.layer_input(layer, first, last)
            out = self._layer(layer, x, sequence, end)
        self.w.inputs[layer.index + 1][first:last] = out.detach()
        if keep:
            self._graphs.setdefault(layer.index, []).append(_Graph(first, last, x, get_gradient_edge(out)))

    def _run_recompute(self, layer: DecoderLayer, sequence: int, end: int) -> None:
        first, last = self.micro.starts[sequence], self.micro.starts[end]
        with torch.enable_grad():
            x = self.layer_input(layer, first, last)
            out = self._layer(layer, x, sequence, end, gradient_only=True)
        self._back_through(layer, _Graph(first, last, x, get_gradient_edge(out)))

    def _back_through(self, layer: DecoderLayer, graph: _Graph) -> None:
        grad = self.w.grad[graph.first : graph.last]
        torch.autograd.backward((graph.out,), (grad,))
        if self.wants_input_gradient(layer):
            grad.copy_(grad_of(graph.x))
            graph.x.grad = None

    def _layer(self, layer: DecoderLayer, x: Tensor, sequence: int, end: int, *, gradient_only: bool = False) -> Tensor:
        """x [rows, hidden] of whole sequences [sequence, end) -> the layer's output."""
        first, last = self.micro.starts[sequence], self.micro.starts[end]
        loras = self.loras(layer, first, last)
        qkv = layer.project_qkv(x, loras, exact=False)
        q, k, v = layer.split_heads(qkv, self._cos[first:last], self._sin[first:last])
        attended = attend(q, k, v, self._packed(sequence, end), layer.window)
        return layer.finish(x, attended, loras, exact=False, gradient_only=gradient_only)

    def _packed(self, sequence: int, end: int) -> list[Pack]:
        """The same for all layers that are cut alike."""
        if (sequence, end) not in self._packs:
            self._packs[sequence, end] = pack(self.micro.lengths()[sequence:end], self.m.device)
        return self._packs[sequence, end]
