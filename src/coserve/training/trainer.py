"""One training run as background work: batches, passes, optimizer steps, checkpoints, in slices."""

from __future__ import annotations

import functools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from coserve.engine import Ride, Slice
from coserve.engine.clock import Readback
from coserve.errors import DataError, InvalidRequest
from coserve.kernels import BLOCK_SIZE
from coserve.kernels.gpu import on_gpu
from coserve.models.decoder import Decoder
from coserve.roofline import Work
from coserve.training.checkpoint import Progress, Snapshot, latest_checkpoint, save_checkpoint
from coserve.training.config import TrainingConfig, micro_batch_tokens
from coserve.training.data import TrainSequence
from coserve.training.layer_pass import Activations, LayerPass
from coserve.training.lora import LoraAdapter
from coserve.training.microbatch import MicroBatch, group_by_tokens
from coserve.training.parameters import Parameters, learning_rate_at
from coserve.training.passes import Machine, MicroBatchPass
from coserve.training.slices import Pass, Workspace
from coserve.training.stages import Stage, Stages


@dataclass(frozen=True)
class TrainingEvent:
    """What a run tells: its first slice is due, an optimizer step is done, a checkpoint is on disk, the end."""

    kind: Literal["started", "metrics", "checkpoint", "finished", "failed"]
    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0  # trained on so far
    path: Path | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class _Done:
    """An optimizer step that has been launched, and its numbers, which may not be there yet: the summed loss and the
    right tokens of the batch, the same of the validation, the gradients' norm."""

    step: int
    batch: Sequence[TrainSequence]
    numbers: Readback
    targets: int
    valid_targets: int  # 0: nothing was validated

    def metrics(self, learning_rate: float) -> dict[str, float]:
        loss, correct, valid_loss, valid_correct, norm = self.numbers.values()
        metrics = _means("", loss, correct, self.targets)
        if self.valid_targets:
            metrics |= _means("valid_", valid_loss, valid_correct, self.valid_targets)
        return metrics | {"learning_rate": learning_rate, "grad_norm": norm}


class Trainer:
    """Trains an adapter (or, for `method="full"`, the model's own weights) on sequences, as background work.

    `directory` keeps its checkpoints: a trainer made on the directory of one that was killed goes on from the last.
    Events come from the thread that runs the slices (checkpoints: from a thread that writes them).

    On a GPU slices are launched, and nothing waits for them: a step's metrics are told when they have come back, which
    may be after the next step's first slices. Before a checkpoint and at the end they are waited for.
    """

    def __init__(
        self,
        machine: Machine,
        sequences: Sequence[TrainSequence],
        config: TrainingConfig,
        directory: Path,
        *,
        base_model: str = "",
        valid: Sequence[TrainSequence] = (),
        on_event: Callable[[TrainingEvent], None] = lambda event: None,
        on_tokens: Callable[[int], None] = lambda tokens: None,
    ):
        if not sequences:
            raise DataError("there is nothing to learn: no sequence has a target token.")
        self.machine, self.config, self.directory = machine, config, directory
        self.sequences, self.valid, self.base_model = sequences, valid, base_model
        self._on_event, self._on_tokens = on_event, on_tokens
        decoder = machine.decoder
        self.adapter: LoraAdapter | None = None
        if config.method == "lora":
            self.adapter = LoraAdapter(
                decoder.config,
                config.lora,
                dtype=decoder.dtype,
                weight_decay=config.weight_decay,
                seed=config.seed,
                device=machine.device,
            )
            self.parameters = self.adapter.parameters
        else:
            self.parameters = full_parameters(decoder, config.weight_decay)
        per_epoch = -(-len(sequences) // config.batch_size)
        steps = config.n_epochs * per_epoch
        self.total_steps = min(steps, config.max_steps or steps)
        self._per_epoch = per_epoch
        longest = max(len(s.tokens) for s in (*sequences, *valid))
        self._by_layers = on_gpu(decoder.embed)  # which need no KV cache
        self._micro_batch_tokens = micro_batch_tokens(config, machine.device)
        if not self._by_layers:
            room = len(machine.blocks) * BLOCK_SIZE
            if longest > room:
                raise DataError(f"a sequence of {longest} tokens does not fit; the longest may have {room}.")
            self._micro_batch_tokens = min(self._micro_batch_tokens, room)
        rows = max(longest, self._micro_batch_tokens)
        self.progress = Progress()
        found = latest_checkpoint(self.checkpoints)
        if found is not None:
            self.progress, state = found
            self.parameters.load_state(state)
        self._workspace: Workspace | Activations | None = (
            Activations(decoder, rows, machine.activation_bytes) if self._by_layers else Workspace(decoder, rows)
        )
        self._launched: deque[_Done] = deque()
        _wait_for(machine.device)  # who runs the slices may do so on another stream
        self._writer: threading.Thread | None = None
        self._tasks = self._run()
        self._task: MicroBatchPass | Stages | None = None
        self._since = 0.0
        self.finished = False
        self.paused = False

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    # ---- background work --------------------------------------------------------------------------------------

    def ride(self, max_rows: int) -> Ride | None:
        if self.paused or self.finished:
            return None
        if self._task is None:
            self._task = next(self._tasks, None)
        if not isinstance(self._task, MicroBatchPass) or self._task.adapter is None:
            return None  # only an adapter's forward reads the weights that are being served
        return self._task.ride(max_rows)

    @property
    def begun(self) -> bool:
        return True

    def next_slice(self, seconds: float) -> Slice | None:
        self._report(wait=False)
        while not (self.paused or self.finished):
            if self._task is None:
                self._task = next(self._tasks, None)
            if self._task is None:
                self.close()
                return None
            piece = self._task.next_slice(seconds)
            if piece is not None:
                return piece
            self._task = None
        return None

    def give_way(self) -> bool:
        return isinstance(self._task, LayerPass) and self._task.give_way()

    def failed(self, error: Exception) -> None:
        self.close()
        self._on_event(TrainingEvent("failed", self.progress.step, self.total_steps, error=error))

    def close(self) -> None:
        """It is over, or ends here, between two slices: its checkpoints stay. What only passes need is free when the
        slices in flight are done. Idempotent."""
        self.finished = True
        if isinstance(self._task, MicroBatchPass):
            self._task.end()
        self._task, self._tasks, self._workspace = None, iter(()), None

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Train to the end, or until `stopped`, on this thread, with nothing else on the engine."""
        while not stopped() and (piece := self.next_slice(math.inf)) is not None:
            piece.run()

    # ---- the run, one task after the other --------------------------------------------------------------------

    def _run(self) -> Iterator[MicroBatchPass | Stages]:
        self._since = time.perf_counter()
        self._on_event(TrainingEvent("started", self.progress.step, self.total_steps, tokens=self.progress.tokens))
        for step in range(self.progress.step, self.total_steps):
            yield from self._step(step)
            self._report(wait=False)
            if (step + 1) % self.config.checkpoint_every == 0 and step + 1 < self.total_steps:
                self._report(wait=True)
                yield Stages([self._checkpoint_stage()], self.machine.estimator)
        self._report(wait=True)
        self._wait_for_writer()
        _wait_for(self.machine.device)
        self._on_event(TrainingEvent("finished", self.progress.step, self.total_steps, tokens=self.progress.tokens))

    def _step(self, step: int) -> Iterator[MicroBatchPass | Stages]:
        """The tasks of an optimizer step; its numbers are on their way behind them."""
        batch, passes, checks = self._batch(step), [], []
        for number, micro in enumerate(self._micro_batches(batch)):
            passes.append(self._pass(micro, batch, f"{self.config.seed}/{step}/{number}"))
            yield passes[-1]
        norm: list[Tensor] = []
        yield Stages(self._update_stages(step, norm), self.machine.estimator)
        if self.valid and (step + 1 == self.total_steps or (step + 1) % self.config.checkpoint_every == 0):
            for micro in self._micro_batches(self.valid):
                checks.append(self._pass(micro, self.valid, "", train=False))
                yield checks[-1]
        none = torch.zeros_like(passes[0].totals)
        sums = [sum((p.totals for p in some), none) for some in (passes, checks)]
        numbers = Readback(torch.cat((*sums, norm[0].view(1))))
        targets, valid_targets = (sum(p.targets for p in some) for some in (passes, checks))
        self._launched.append(_Done(step, batch, numbers, targets, valid_targets))

    def _batch(self, step: int) -> list[TrainSequence]:
        """The sequences of an optimizer step."""
        epoch, index = divmod(step, self._per_epoch)
        order = _epoch_order(self.config.seed, epoch, len(self.sequences))
        size = self.config.batch_size
        return [self.sequences[i] for i in order[index * size : (index + 1) * size]]

    def _micro_batches(self, batch: Sequence[TrainSequence]) -> Iterator[MicroBatch]:
        for group in group_by_tokens(batch, self._micro_batch_tokens):
            yield MicroBatch.of(group, None if self._by_layers else self.machine.blocks)

    def _pass(
        self, micro: MicroBatch, batch: Sequence[TrainSequence], key: str, *, train: bool = True
    ) -> MicroBatchPass:
        adapter, workspace = self.adapter, self._workspace
        scale = 1 / sum(sequence.targets for sequence in batch)
        layers = None
        if adapter is not None:
            dropout_key = key if train else None

            def layers(row: int):
                return adapter.layers(dropout_key, row)

        if isinstance(workspace, Activations):
            return LayerPass(self.machine, micro, workspace, adapter=layers, scale=scale, train=train)
        assert workspace is not None
        return Pass(self.machine, micro, workspace, adapter=layers, scale=scale, train=train)

    def _update_stages(self, step: int, norms: list[Tensor]) -> Iterator[Stage]:
        """Clip by the norm of all gradients, then AdamW, a group at a time. `norms` gets the norm."""
        p, rate, limit = self.parameters, self._rate(step), self.config.max_grad_norm
        names, one = list(p.groups), 4 * p.count / len(p.groups)

        def norm(first: int, last: int) -> None:
            norms.append(p.grad_norm())

        def update(first: int, last: int) -> None:
            clip = (limit / (norms[0] + 1e-6)).clamp(max=1.0).float()
            for name in names[first:last]:
                p.update(name, rate, clip)

        yield Stage("train-norm", 1, norm, lambda a, b: Work(4 * p.count, 0))
        yield Stage("train-update", len(names), update, lambda a, b: Work((b - a) * 6 * one, 0))

    def _rate(self, step: int) -> float:
        c = self.config
        return learning_rate_at(step, self.total_steps, c.lr_scheduler_type, c.warmup_ratio, c.learning_rate)

    def _report(self, *, wait: bool) -> None:
        """Tell the metrics of the steps that are done; with `wait`, of all that were launched."""
        while self._launched and (wait or self._launched[0].numbers.ready()):
            self._report_step(self._launched.popleft())

    def _report_step(self, done: _Done) -> None:
        row = done.metrics(self._rate(done.step))
        now, tokens = time.perf_counter(), sum(len(sequence.tokens) for sequence in done.batch)
        row["tokens_per_second"] = tokens / max(1e-9, now - self._since)
        self._since = now
        self._on_tokens(tokens)
        before, step = self.progress, done.step + 1
        self.progress = Progress(step, before.tokens + tokens, (*before.metrics, {"step": step, **row}))
        self._on_event(TrainingEvent("metrics", step, self.total_steps, row, tokens=self.progress.tokens))

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _checkpoint_stage(self) -> Stage:
        def snapshot(first: int, last: int) -> None:
            self._wait_for_writer()
            # A copy of all of a model's weights and their moments has no room beside them on a GPU.
            state = self.parameters.state(None if self.adapter is not None else torch.device("cpu"))
            self._writer = threading.Thread(target=self._write, args=(self.progress, Snapshot(state)), daemon=True)
            self._writer.start()

        return Stage("train-checkpoint", 1, snapshot, lambda a, b: Work(24 * self.parameters.count, 0))

    def _write(self, progress: Progress, snapshot: Snapshot) -> None:
        state = snapshot.on_cpu()
        path = save_checkpoint(self.checkpoints, progress, state)
        if self.adapter is not None:
            masters = {name: state[f"master.{name}"] for name in self.parameters.masters}
            self.adapter.save(path / "adapter", self.base_model, masters)
        metrics = progress.metrics[-1] if progress.metrics else {}
        self._on_event(TrainingEvent("checkpoint", progress.step, self.total_steps, metrics, progress.tokens, path))

    def _wait_for_writer(self) -> None:
        if self._writer is not None:
            self._writer.join()


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """Each epoch has its own order, a function of the seed."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def _means(prefix: str, loss: float, correct: float, targets: int) -> dict[str, float]:
    """Mean loss and accuracy over the target tokens, from their sums."""
    targets = max(1, targets)
    return {f"{prefix}loss": loss / targets, f"{prefix}mean_token_accuracy": correct / targets}


def _wait_for(device: torch.device) -> None:
    """Until all that this thread has launched is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def full_parameters(decoder: Decoder, weight_decay: float) -> Parameters:
    """All of a model's own weights, trained in place; a layer is a group.

    Raises `InvalidRequest` for a quantised model.
    """
    if decoder.quantized:
        raise InvalidRequest(
            f"weights in {decoder.weight_format} cannot be trained themselves, only an adapter on them: "
            "choose the weights bf16, or the method lora.",
            param="method",
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in decoder.tensors().items():
        parts = name.split(".")
        groups.setdefault(" ".join(parts[:2]) if parts[0] == "layers" else name, {})[name] = tensor
    return Parameters(groups, decoder.dtype, weight_decay)
