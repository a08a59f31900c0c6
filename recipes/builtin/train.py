"""The training run: data and an untrained model, coserve's trainer, a finished directory."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file

from coserve.training import TrainingConfig, TrainingEvent, read_examples, train_model
from recipes.builtin.build import write_initial_model
from recipes.builtin.conversations import training_conversations
from recipes.builtin.model import save_weights, write_config
from recipes.builtin.tokenizer import END, PAD, SPECIAL

SPEED_STEPS = 30  # of a first run that only measures how fast this machine trains
CONFIG = TrainingConfig(
    method="full",
    n_epochs=1,
    batch_size=16,
    learning_rate=2e-3,
    warmup_ratio=0.02,
    weight_decay=0.01,
    micro_batch_tokens=2048,
    checkpoint_every=1000,
)


@dataclass(frozen=True)
class Run:
    """What a training run was, for the model card."""

    steps: int
    conversations: int
    tokens: int
    seconds: float
    loss: float  # mean of the last steps


def train(work: Path, *, minutes: float, steps: int | None = None, seed: int = 0) -> tuple[Path, Run]:
    """Train from scratch in `work`; returns the trained directory and what it took.

    `steps`: None = as many as this machine does in `minutes`. The same seed and steps give the same data.
    """
    initial = work / "initial"
    write_initial_model(initial, torch.bfloat16, seed)
    steps = steps or _steps_in(minutes * 60, work, initial, seed)
    return _train(work / "run", initial, steps, seed)


def publish(trained: Path, out: Path) -> int:
    """Copy a trained directory to `out` with its weights in bfloat16; returns the weights' size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(trained / name, out / name)
    weights = load_file(trained / "model.safetensors")
    vocabulary = weights["model.embed_tokens.weight"].shape[0]
    write_config(out, vocabulary, SPECIAL.index(END), SPECIAL.index(PAD), "bfloat16")
    return save_weights(weights, out, torch.bfloat16)


def _steps_in(seconds: float, work: Path, initial: Path, seed: int) -> int:
    """How many optimizer steps this machine does in `seconds`."""
    _, run = _train(work / "speed", initial, SPEED_STEPS, seed)
    return max(SPEED_STEPS, int(seconds * run.steps / run.seconds))


def _train(directory: Path, initial: Path, steps: int, seed: int) -> tuple[Path, Run]:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    data = directory / "conversations.jsonl"
    count = steps * CONFIG.batch_size
    with data.open("w", encoding="utf-8") as file:
        file.writelines(c.line() + "\n" for c in islice(training_conversations(count, seed), count))
    progress = _Progress()
    trained = train_model(
        initial,
        read_examples(data),
        replace(CONFIG, max_steps=steps, seed=seed),
        directory / "model",
        work_directory=directory / "state",
        on_event=progress,
    )
    return trained, Run(steps, count, progress.tokens, progress.seconds, progress.loss)


class _Progress:
    """Prints a line every few seconds; keeps the totals."""

    def __init__(self) -> None:
        self.tokens, self.loss = 0, 0.0
        self._started = self._shown = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def __call__(self, event: TrainingEvent) -> None:
        now = time.perf_counter()
        if event.kind == "started":
            self._started = now
        if event.kind != "metrics":
            return
        loss = event.metrics["loss"]
        self.tokens = event.tokens
        self.loss = loss if event.step == 1 else 0.98 * self.loss + 0.02 * loss
        if now - self._shown > 10 or event.step == event.total_steps:
            self._shown = now
            done = f"step {event.step}/{event.total_steps}  {self.tokens / 1e6:.2f} M tokens"
            speed = f"{self.tokens / self.seconds:.0f} tokens/s  {self.seconds:.0f} s"
            print(f"{done}  loss {self.loss:.3f}  {speed}", file=sys.stderr, flush=True)
