"""What every pass over a micro-batch has: its machine, its buffers, its loss. How layers are cut differs by device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.engine import Ride, Slice
from coserve.kernels import KVCache, LoraLayer, LoraRows
from coserve.models.cost import ModelCost
from coserve.models.decoder import Decoder, DecoderLayer
from coserve.roofline import Estimator, Work
from coserve.training.microbatch import IGNORED, MicroBatch
from coserve.training.packs import moved
from coserve.training.stages import Stage

HEAD_STEP = 16  # rows of the smallest slice of the loss

AdapterLayers = Callable[[int], Sequence[LoraLayer]]  # row of the micro-batch at which the adapter's input starts


@dataclass(frozen=True)
class Machine:
    """What a pass runs on: a model, KV blocks set aside for training, and the cost model that cuts slices.

    `activation_bytes`: of a GPU's memory, for what is kept of a forward; None: most of what is free when training
    starts. A CPU recomputes.
    """

    decoder: Decoder
    cache: KVCache
    blocks: Sequence[int]
    estimator: Estimator
    activation_bytes: int | None = None

    @property
    def cost(self) -> ModelCost:
        return self.decoder.cost

    @property
    def device(self) -> torch.device:
        return self.decoder.device


class LayerInputs:
    """Buffers for passes of up to `rows` rows, used by one at a time: each layer's input and the last one's output
    [rows, hidden], and the gradient of that."""

    def __init__(self, decoder: Decoder, rows: int):
        c = decoder.config
        self.rows = rows
        self.grad = torch.empty(rows, c.hidden_size, dtype=decoder.dtype, device=decoder.device)
        self.inputs = [torch.empty_like(self.grad) for _ in range(c.num_hidden_layers + 1)]


class MicroBatchPass:
    """Forward, loss, and (if `train`) backward of one micro-batch; gradients land in the trained parameters.

    `adapter(row)` gives the trained adapter's layers for inputs that start at a row; None where the model's own
    weights are trained. `scale` multiplies the summed loss (one over the targets of the whole batch).
    """

    head_rows: int  # whose logits are held at once

    def __init__(
        self,
        machine: Machine,
        micro: MicroBatch,
        workspace: LayerInputs,
        *,
        adapter: AdapterLayers | None,
        scale: float,
        train: bool = True,
    ):
        self.m, self.micro, self.w = machine, micro, workspace
        self.adapter, self.scale, self.train = adapter, scale, train
        learnt = torch.nonzero(micro.labels != IGNORED).flatten()
        self.targets = len(learnt)
        self._learnt = moved(learnt, machine.device)
        self._labels = moved(micro.labels[learnt], machine.device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=machine.device)  # summed loss, right tokens

    @property
    def loss_sum(self) -> float:
        """Over the targets so far. Waits for the device, as `correct` does."""
        return float(self.totals[0])

    @property
    def correct(self) -> int:
        return int(self.totals[1])

    # ---- what the engine sees ---------------------------------------------------------------------------------

    def ride(self, max_rows: int) -> Ride | None:
        """Rows that may go along in the engine's next batch; None if there are none."""
        raise NotImplementedError

    def next_slice(self, seconds: float) -> Slice | None:
        """None when the pass is complete."""
        raise NotImplementedError

    def end(self) -> None:
        """Leave it as it is: its memory is free as soon as nobody holds the pass or one of its slices."""
        raise NotImplementedError

    # ---- after the forward ------------------------------------------------------------------------------------

    def _after_forward(self) -> Iterator[Stage]:
        if self.train:
            self.w.grad[: self.micro.rows] = 0
        head = self.m.cost.head
        yield Stage(
            "train-head",
            self.targets,
            self._loss,
            lambda a, b: Work(head(b - a).bytes * 2, head(b - a).flops * 2),
            step=HEAD_STEP,
            most=self.head_rows,
        )
        if self.train:
            for layer in reversed(self.m.decoder.layers):
                yield from self._backward(layer)
            if self.adapter is None:
                yield Stage("train-embed", 1, self._embedding, lambda a, b: Work(self.w.grad.nbytes, 0))

    def _backward(self, layer: DecoderLayer) -> Iterator[Stage]:
        """On entry `w.grad` holds the gradient of the layer's output; at the end, of its input."""
        raise NotImplementedError

    def _loss(self, first: int, last: int) -> None:
        rows, labels = self._learnt[first:last], self._labels[first:last]
        with torch.set_grad_enabled(self.train):
            x = self.w.inputs[-1].index_select(0, rows).requires_grad_(self.train)
            logits = self.m.decoder.logits(x).float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            if self.train:
                (loss * self.scale).backward()
                self.w.grad[rows] = grad_of(x)
        self.totals[0] += loss.detach()
        self.totals[1] += (logits.detach().argmax(-1) == labels).sum()

    def _embedding(self, first: int, last: int) -> None:
        with torch.enable_grad():
            tokens = moved(self.micro.tokens, self.m.device)
            self.m.decoder.embedded(tokens).backward(self.w.grad[: self.micro.rows])

    # ---- for layers -------------------------------------------------------------------------------------------

    def wants_input_gradient(self, layer: DecoderLayer) -> bool:
        """Nothing below the first layer is trained when it is an adapter that is."""
        return layer.index > 0 or self.adapter is None

    def layer_input(self, layer: DecoderLayer, first: int, last: int) -> Tensor:
        """A leaf: rows [first, last) of a layer's input."""
        return self.w.inputs[layer.index][first:last].detach().requires_grad_(self.wants_input_gradient(layer))

    def loras(self, layer: DecoderLayer, first: int, last: int) -> list[LoraRows]:
        if self.adapter is None:
            return []
        return [LoraRows(0, last - first, self.adapter(first)[layer.index])]


def grad_of(leaf: Tensor) -> Tensor:
    """What a backward has just left on a leaf."""
    if leaf.grad is None:
        raise RuntimeError("the backward did not reach this tensor")
    return leaf.grad
