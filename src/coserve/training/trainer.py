"""One training run as background work: batches, passes, optimizer steps, checkpoints, in slices."""

from __future__ import annotations

import functools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from coserve.engine import Ride, Slice
from coserve.errors import DataError, InvalidRequest
from coserve.kernels import BLOCK_SIZE
from coserve.models.decoder import Decoder
from coserve.roofline import Work
from coserve.training.checkpoint import Progress, latest_checkpoint, save_checkpoint
from coserve.training.config import TrainingConfig
from coserve.training.data import TrainSequence
from coserve.training.lora import LoraAdapter
from coserve.training.microbatch import MicroBatch, group_by_tokens
from coserve.training.parameters import Parameters, learning_rate_at
from coserve.training.slices import Machine, Pass, Workspace
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


class Trainer:
    """Trains an adapter (or, for `method="full"`, the model's own weights) on sequences, as background work.

    `directory` keeps its checkpoints: a trainer made on the directory of one that was killed goes on from the last.
    Events come from the thread that runs the slices (checkpoints: from a thread that writes them).
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
            )
            self.parameters = self.adapter.parameters
        else:
            self.parameters = full_parameters(decoder, config.weight_decay)
        per_epoch = -(-len(sequences) // config.batch_size)
        steps = config.n_epochs * per_epoch
        self.total_steps = min(steps, config.max_steps or steps)
        self._per_epoch = per_epoch
        longest = max(len(s.tokens) for s in (*sequences, *valid))
        room = len(machine.blocks) * BLOCK_SIZE
        if longest > room:
            raise DataError(f"a sequence of {longest} tokens does not fit; the longest may have {room}.")
        self._micro_batch_tokens = min(config.micro_batch_tokens, room)
        self._workspace = Workspace(decoder, max(longest, self._micro_batch_tokens))
        self.progress = Progress()
        found = latest_checkpoint(self.checkpoints)
        if found is not None:
            self.progress, state = found
            self.parameters.load_state(state)
        self._writer: threading.Thread | None = None
        self._tasks = self._run()
        self._task: Pass | Stages | None = None
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
        if not isinstance(self._task, Pass) or self._task.adapter is None:
            return None  # only an adapter's forward reads the weights that are being served
        return self._task.ride(max_rows)

    def next_slice(self, seconds: float) -> Slice | None:
        while not (self.paused or self.finished):
            if self._task is None:
                self._task = next(self._tasks, None)
            if self._task is None:
                self.finished = True
                return None
            piece = self._task.next_slice(seconds)
            if piece is not None:
                return piece
            self._task = None
        return None

    def failed(self, error: Exception) -> None:
        self.finished = True
        self._on_event(TrainingEvent("failed", self.progress.step, self.total_steps, error=error))

    def cancel(self) -> None:
        """End it between two slices; its checkpoints stay."""
        self.finished = True

    def run(self) -> None:
        """Train to the end on this thread, with nothing else on the engine."""
        while (piece := self.next_slice(math.inf)) is not None:
            piece.run()

    # ---- the run, one task after the other --------------------------------------------------------------------

    def _run(self) -> Iterator[Pass | Stages]:
        self._since = time.perf_counter()
        self._on_event(TrainingEvent("started", self.progress.step, self.total_steps, tokens=self.progress.tokens))
        while self.progress.step < self.total_steps:
            step = self.progress.step
            batch = self._batch(step)
            passes = []
            for number, micro in enumerate(self._micro_batches(batch)):
                passes.append(self._pass(micro, batch, f"{self.config.seed}/{step}/{number}"))
                yield passes[-1]
            clip: list[float] = []
            yield Stages(self._update_stages(step, clip), self.machine.estimator)
            metrics = _metrics(passes)
            last = step + 1 == self.total_steps
            if self.valid and (last or (step + 1) % self.config.checkpoint_every == 0):
                checks = [self._pass(m, self.valid, "", train=False) for m in self._micro_batches(self.valid)]
                yield from checks
                metrics |= {f"valid_{name}": value for name, value in _metrics(checks).items()}
            self._report(step, batch, metrics, clip[0])
            if (step + 1) % self.config.checkpoint_every == 0 and not last:
                yield Stages([self._checkpoint_stage()], self.machine.estimator)
        self._wait_for_writer()
        self._on_event(TrainingEvent("finished", self.progress.step, self.total_steps, tokens=self.progress.tokens))

    def _batch(self, step: int) -> list[TrainSequence]:
        """The sequences of an optimizer step."""
        epoch, index = divmod(step, self._per_epoch)
        order = _epoch_order(self.config.seed, epoch, len(self.sequences))
        size = self.config.batch_size
        return [self.sequences[i] for i in order[index * size : (index + 1) * size]]

    def _micro_batches(self, batch: Sequence[TrainSequence]) -> Iterator[MicroBatch]:
        for group in group_by_tokens(batch, self._micro_batch_tokens):
            yield MicroBatch.of(group, self.machine.blocks)

    def _pass(self, micro: MicroBatch, batch: Sequence[TrainSequence], key: str, *, train: bool = True) -> Pass:
        adapter = self.adapter
        scale = 1 / sum(sequence.targets for sequence in batch)
        layers = None
        if adapter is not None:
            dropout_key = key if train else None

            def layers(row: int):
                return adapter.layers(dropout_key, row)

        return Pass(self.machine, micro, self._workspace, adapter=layers, scale=scale, train=train)

    def _update_stages(self, step: int, clip: list[float]) -> Iterator[Stage]:
        """Clip by the norm of all gradients, then AdamW, a group at a time. `clip` gets the norm."""
        p, c = self.parameters, self.config
        rate = learning_rate_at(step, self.total_steps, c.lr_scheduler_type, c.warmup_ratio, c.learning_rate)
        names, one = list(p.groups), 4 * p.count / len(p.groups)

        def norm(first: int, last: int) -> None:
            clip.append(p.grad_norm())

        def update(first: int, last: int) -> None:
            scale = min(1.0, c.max_grad_norm / (clip[0] + 1e-6))
            for name in names[first:last]:
                p.update(name, rate, scale)

        yield Stage("train-norm", 1, norm, lambda a, b: Work(4 * p.count, 0))
        yield Stage("train-update", len(names), update, lambda a, b: Work((b - a) * 6 * one, 0))

    def _report(self, step: int, batch: Sequence[TrainSequence], metrics: Mapping[str, float], norm: float) -> None:
        now, tokens = time.perf_counter(), sum(len(sequence.tokens) for sequence in batch)
        c = self.config
        row = {
            **metrics,
            "learning_rate": learning_rate_at(
                step, self.total_steps, c.lr_scheduler_type, c.warmup_ratio, c.learning_rate
            ),
            "grad_norm": norm,
            "tokens_per_second": tokens / max(1e-9, now - self._since),
        }
        self._since = now
        self._on_tokens(tokens)
        before = self.progress
        self.progress = Progress(step + 1, before.tokens + tokens, (*before.metrics, {"step": step + 1, **row}))
        self._on_event(TrainingEvent("metrics", step + 1, self.total_steps, row, tokens=self.progress.tokens))

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _checkpoint_stage(self) -> Stage:
        def snapshot(first: int, last: int) -> None:
            self._wait_for_writer()
            state, progress = self.parameters.state(), self.progress
            self._writer = threading.Thread(target=self._write, args=(progress, state), daemon=True)
            self._writer.start()

        return Stage("train-checkpoint", 1, snapshot, lambda a, b: Work(24 * self.parameters.count, 0))

    def _write(self, progress: Progress, state: Mapping[str, Tensor]) -> None:
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


def _metrics(passes: Sequence[Pass]) -> dict[str, float]:
    """Mean loss and accuracy over the target tokens of some passes."""
    targets = max(1, sum(len(p.learnt) for p in passes))
    return {
        "loss": sum(p.loss_sum for p in passes) / targets,
        "mean_token_accuracy": sum(p.correct for p in passes) / targets,
    }


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
