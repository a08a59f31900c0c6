"""Endless training, to be started and stopped: in the engine that serves, or in a process of its own."""

from __future__ import annotations

import bisect
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.client import Window
from coserve.engine import Engine
from coserve.training import Trainer, TrainingConfig, TrainingEvent, TrainSequence
from coserve.training.passes import Machine

_START_SECONDS, _STOP_SECONDS = 600.0, 60.0  # the longest that a process may take to start, and to stop


@dataclass(frozen=True)
class TrainingShape:
    """A batch: `sequences` of `tokens` tokens to an optimizer step, in one pass."""

    sequences: int
    tokens: int

    @property
    def step_tokens(self) -> int:
        return self.sequences * self.tokens

    def config(self, max_steps: int | None = None) -> TrainingConfig:
        """LoRA of rank 16 on all linear layers; without end unless `max_steps`; no checkpoints."""
        return TrainingConfig(
            n_epochs=1_000_000,
            batch_size=self.sequences,
            micro_batch_tokens=self.step_tokens,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            learning_rate=1e-4,
            max_steps=max_steps,
            checkpoint_every=1_000_000_000,
        )

    def data(self, vocabulary: int, seed: int, batches: int = 32) -> list[TrainSequence]:
        """Random tokens, all of them to be learnt."""
        rng = random.Random(f"training {seed}")
        learn = (True,) * self.tokens
        return [
            TrainSequence(tuple(rng.randrange(vocabulary) for _ in range(self.tokens)), learn)
            for _ in range(batches * self.sequences)
        ]


class Marks:
    """When how many tokens had been trained on, update included: one mark for each optimizer step."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]
        self._tokens = [0]

    def add(self, tokens: int) -> None:
        """`tokens` more were trained on, now."""
        self._tokens.append(self._tokens[-1] + tokens)
        self._times.append(time.perf_counter())

    @property
    def steps(self) -> int:
        return len(self._times) - 1

    def reached(self, when: float) -> bool:
        """Whether a step has ended at or after a time: only then is it known how far training was then."""
        return self._times[-1] >= when

    def rate(self, window: Window) -> float:
        """Tokens/s over a window. Progress is taken to be even between two marks, and none after the last."""
        return (self._at(window.end) - self._at(window.start)) / window.seconds

    def _at(self, when: float) -> float:
        after = bisect.bisect_left(self._times, when)
        if after == 0 or after == len(self._times):
            return self._tokens[min(after, len(self._tokens) - 1)]
        t0, t1 = self._times[after - 1 : after + 1]
        n0, n1 = self._tokens[after - 1 : after + 1]
        return n0 + (n1 - n0) * (when - t0) / (t1 - t0)


class TrainingLoad(Protocol):
    """`start` begins with fresh marks; `stop` returns when no training runs any more."""

    marks: Marks

    def start(self) -> None: ...

    def stop(self) -> None: ...


class TrainingInEngine:
    """Background work of the engine that serves."""

    def __init__(self, engine: Engine, shape: TrainingShape, seed: int):
        self.marks = Marks()
        self._engine = engine
        self._config = shape.config()
        self._data = shape.data(engine.model_config.vocab_size, seed)
        self._trainer: Trainer | None = None

    @property
    def machine(self) -> Machine:
        engine = self._engine
        return Machine(engine.decoder, engine.cache, engine.train_blocks, engine.estimator)

    def warm_up(self) -> None:
        """One optimizer step: the first of a process loads what the later ones find loaded."""
        self.start()
        while not self.marks.steps:
            time.sleep(0.01)
        self.stop()

    def start(self) -> None:
        self.marks = Marks()
        self._trainer = new_trainer(self.machine, self._data, self._config, self.marks.add)
        self._engine.attach(self._trainer)

    def stop(self) -> None:
        if self._trainer is not None:
            between_slices = threading.Event()
            self._engine.call(self._trainer.close)
            self._engine.call(between_slices.set)
            self._trainer = None
            between_slices.wait()


class TrainingInProcess:
    """Our trainer by itself in another process (`lone_trainer.py`), with as many threads as this one."""

    def __init__(self, model: Path, shape: TrainingShape, seed: int):
        self.marks = Marks()
        command = [sys.executable, "-m", "benchmarks.lone_trainer", str(model.resolve())]
        command += [str(shape.sequences), str(shape.tokens), str(seed)]
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._quiet = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait_until_quiet("load its model", _START_SECONDS)
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def start(self) -> None:
        self.marks = Marks()
        self._quiet.clear()
        self._tell("start")

    def stop(self) -> None:
        if not self._quiet.is_set():
            self._tell("stop")
            self._wait_until_quiet("stop", _STOP_SECONDS)

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()  # type: ignore[union-attr]

    def _tell(self, word: str) -> None:
        print(word, file=self._process.stdin, flush=True)

    def _read(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            event = json.loads(line)
            if "tokens" in event:
                self.marks.add(event["tokens"])
            else:
                self._quiet.set()

    def _wait_until_quiet(self, task: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._quiet.wait(0.2):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the training process did not {task}; its messages are above")


def new_trainer(
    machine: Machine,
    data: Sequence[TrainSequence],
    config: TrainingConfig,
    on_tokens: Callable[[int], None],
    on_event: Callable[[TrainingEvent], None] = lambda event: None,
) -> Trainer:
    """A trainer that reads and writes no checkpoints."""
    nowhere = Path(tempfile.gettempdir()) / "coserve-benchmark-without-checkpoints"
    return Trainer(machine, data, config, nowhere, on_tokens=on_tokens, on_event=on_event)
