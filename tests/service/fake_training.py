"""A trainer that counts steps: it keeps the count in the job's directory and resumes from there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coserve.errors import DataError
from coserve.service.jobs import Training
from coserve.training import JobEvent, JobSpec
from tests.service.fake_engine import FakeEngine

CHECKPOINT_EVERY = 2


def read_examples(path: Path) -> list[Any]:
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            examples.append(json.loads(line)["messages"])
        except (ValueError, KeyError, TypeError):
            raise DataError("it is not a conversation.", line=number) from None
    return examples


class FakeTrainingJob:
    """Trains for `max_steps` (6 by default); a learning rate from 0.01 on is seconds for each step."""

    def __init__(self, engine: FakeEngine, spec: JobSpec, listener: Callable[[JobEvent], None]):
        self.engine, self.spec, self.listener = engine, spec, listener
        self.total = spec.config.max_steps or 6
        self.seconds = spec.config.learning_rate if spec.config.learning_rate >= 0.01 else 0.0
        self.cancelled = False
        self.going = threading.Event()
        self.going.set()

    def start(self) -> None:
        threading.Thread(target=self._train, daemon=True).start()

    def cancel(self) -> None:
        self.cancelled = True
        self.going.set()

    def pause(self) -> None:
        self.going.clear()

    def resume(self) -> None:
        self.going.set()

    def _train(self) -> None:
        directory, tell = self.spec.directory, self.listener
        for status in ("validating_files", "queued", "running"):
            tell(JobEvent("status", status=status))
        marker = directory / "checkpoint"
        done = int(marker.read_text()) if marker.exists() else 0
        if done:
            tell(JobEvent("message", status=None, message=f"Resumed at step {done}"))
        for step in range(done + 1, self.total + 1):
            time.sleep(self.seconds)
            self.going.wait()
            if self.cancelled or self.engine.stopped.is_set():
                return
            metrics = {"train_loss": 1 / step, "learning_rate": float("nan")}
            at = {"step": step, "total_steps": self.total, "trained_tokens": 10 * step}
            tell(JobEvent("metrics", status=None, metrics=metrics, **at))
            if step % CHECKPOINT_EVERY == 0:
                marker.write_text(str(step))
                tell(JobEvent("checkpoint", status=None, metrics=metrics, path=marker, **at))
        self._finish()

    def _finish(self) -> None:
        adapter = self.spec.directory / "adapter"
        adapter.mkdir(exist_ok=True)
        results = [self.spec.directory / name for name in ("metrics.csv", "adapter.zip")]
        for path in results:
            path.write_text(f"content of {path.name}")
        self.engine.load_adapter(self.spec.adapter_name, adapter)
        self.listener(
            JobEvent(
                "finished",
                status="succeeded",
                step=self.total,
                total_steps=self.total,
                trained_tokens=10 * self.total,
                adapter_path=adapter,
                result_files=tuple(results),
            )
        )


TRAINING = Training(FakeTrainingJob, read_examples)  # type: ignore[arg-type]
