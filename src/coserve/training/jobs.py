"""A fine-tuning job: from a file of examples to an adapter that is served, beside everything else the engine does."""

from __future__ import annotations

import csv
import logging
import os
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from coserve.engine import Engine
from coserve.errors import CoserveError, DataError, InvalidRequest, ModelNotFound, OutOfMemory, ShuttingDown
from coserve.kernels.memory import is_out_of_memory
from coserve.training.config import TrainingConfig
from coserve.training.data import TrainSequence, encode_all, read_examples
from coserve.training.passes import Machine
from coserve.training.trainer import Trainer, TrainingEvent
from coserve.training.turn import Turn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobSpec:
    """What is to be trained, and where its state lives. The same spec on the same directory goes on after a kill."""

    id: str
    model: str  # the base model's name
    training_file: Path
    config: TrainingConfig
    adapter_name: str  # the name that the result is served under
    directory: Path
    validation_file: Path | None = None


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job; told in order, from threads of the engine and of the job.

    kind "status": it is now in `status`. "message": something for people. "metrics": an optimizer step is done.
    "checkpoint": `path` is on disk. "finished": the adapter is served; the last event. "failed": `error`; the last.
    """

    kind: Literal["status", "message", "metrics", "checkpoint", "finished", "failed"]
    status: str | None = None
    message: str = ""
    level: Literal["info", "warn", "error"] = "info"
    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    path: Path | None = None
    trained_tokens: int = 0
    adapter_path: Path | None = None
    result_files: tuple[Path, ...] = ()
    error: CoserveError | None = None


class TrainingJob:
    """Validates, trains in the engine's slack, writes the results, and serves them.

    `listener` is called from other threads, never at the same time, and must be quick.
    """

    def __init__(self, engine: Engine, spec: JobSpec, listener: Callable[[JobEvent], None]):
        if spec.config.method != "lora":
            raise InvalidRequest(
                "an engine trains adapters (method 'lora'); all weights are trained by coserve.training.train_model.",
                param="method",
            )
        if spec.model != engine.name:
            raise ModelNotFound(
                f"The model {spec.model!r} cannot be fine-tuned here; this server has {engine.name!r}.",
                param="model",
            )
        self.engine, self.spec = engine, spec
        self._listener = listener
        self._lock = threading.Lock()
        self._turn: Turn | None = None  # from when its data was read until its end
        self._paused = self._ended = False

    def start(self) -> None:
        """Returns at once; everything else happens on other threads."""
        threading.Thread(target=self._prepare, name=f"coserve-{self.spec.id}", daemon=True).start()

    def cancel(self) -> None:
        """End it between two slices. Idempotent; no effect on one that has ended."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()
        self._listener(JobEvent("status", status="cancelled"))

    def pause(self) -> None:
        """Train no further until `resume`; other jobs wait behind it."""
        self._set_paused(True)

    def resume(self) -> None:
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        with self._lock:
            self._paused = paused
            if self._turn is not None:
                self._turn.pause(paused)

    # ---- preparation, on the job's own thread -----------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            self._tell(JobEvent("status", status="validating_files"))
            sequences = self._sequences(self.spec.training_file, "training_file")
            valid: Sequence[TrainSequence] = ()
            if self.spec.validation_file is not None:
                valid = self._sequences(self.spec.validation_file, "validation_file")
            self._tell(JobEvent("status", status="queued"))
            turn = Turn(
                lambda: self._make_trainer(sequences, valid),
                fail=self._not_made,
                call=self.engine.call,
            )
            with self._lock:
                if self._ended:
                    return
                self._turn = turn
                turn.pause(self._paused)
            self.engine.attach(turn)
        except Exception as error:
            self._fail(error)

    def _sequences(self, file: Path, param: str) -> list[TrainSequence]:
        """Raises `DataError` naming the file's line, or that nothing is left to learn."""
        longest = min(self.engine.max_context, self.engine.config.train_tokens)
        longest = min(longest, self.spec.config.max_length or longest)
        try:
            examples = read_examples(file)
            encoded = list(encode_all(examples, self.engine.tokenizer, longest))
        except DataError as error:
            error.param = param
            raise
        sequences = [sequence for sequence in encoded if sequence is not None]
        if not sequences:
            raise DataError(f"no example has anything to learn within {longest} tokens.", param=param)
        cut = sum(len(sequence.tokens) == longest for sequence in sequences)
        if cut or len(sequences) < len(encoded):
            dropped = len(encoded) - len(sequences)
            self._tell(
                JobEvent(
                    "message",
                    level="warn",
                    message=f"{param}: {cut} examples were cut at {longest} tokens; {dropped} with nothing left to "
                    "learn were dropped.",
                )
            )
        return sequences

    def _make_trainer(self, sequences: Sequence[TrainSequence], valid: Sequence[TrainSequence]) -> Trainer | None:
        engine = self.engine
        machine = Machine(engine.decoder, engine.cache, engine.train_blocks, engine.estimator)
        with engine.awake():
            if self._ended:
                return None
            return Trainer(
                machine,
                sequences,
                self.spec.config,
                self.spec.directory,
                base_model=self.spec.model,
                valid=valid,
                on_event=self._hear,
                on_tokens=engine.count_training_tokens,
            )

    def _not_made(self, error: Exception) -> None:
        if not isinstance(error, ShuttingDown):  # else the job goes on when another engine has its directory
            self._fail(error)

    # ---- the trainer's story ----------------------------------------------------------------------------------

    def _tell(self, event: JobEvent) -> None:
        with self._lock:
            if not self._ended:
                self._listener(event)

    def _hear(self, event: TrainingEvent) -> None:
        told = JobEvent(
            "metrics",
            step=event.step,
            total_steps=event.total_steps,
            metrics={_PUBLIC_NAMES.get(name, name): value for name, value in event.metrics.items()},
            trained_tokens=event.tokens,
            path=event.path,
        )
        if event.kind == "started":
            self._tell(replace(told, kind="status", status="running"))
        elif event.kind in ("metrics", "checkpoint"):
            self._tell(replace(told, kind=event.kind))
        elif event.kind == "failed":
            self._fail(event.error or RuntimeError("training failed"))
        else:  # not on the engine's thread: it serves on
            threading.Thread(target=self._finish, args=(event,), daemon=True).start()

    def _finish(self, event: TrainingEvent) -> None:
        turn = self._turn
        if turn is None or turn.trainer is None:  # cancelled meanwhile
            return
        try:
            adapter, files = self._write_results(turn.trainer)
            self.engine.load_adapter(self.spec.adapter_name, adapter)
        except ShuttingDown:
            return  # the job goes on when another one has its directory
        except Exception as error:
            self._fail(error)
            return
        done = JobEvent(
            "finished",
            status="succeeded",
            step=event.step,
            total_steps=event.total_steps,
            trained_tokens=event.tokens,
            adapter_path=adapter,
            result_files=files,
        )
        if not self._end(done):  # cancelled meanwhile
            self.engine.unload_adapter(self.spec.adapter_name)

    def _write_results(self, trainer: Trainer) -> tuple[Path, tuple[Path, ...]]:
        """The adapter's directory, and the job's result files: metrics as CSV, the adapter as a zip."""
        directory = self.spec.directory
        assert trainer.adapter is not None
        adapter = directory / "adapter"
        trainer.adapter.save(adapter, self.spec.model)
        metrics = directory / "metrics.csv"
        _write_metrics(metrics, trainer.progress.metrics)
        archive = directory / "adapter.zip"
        part = archive.with_suffix(".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(adapter.iterdir()):
                file.write(path, path.name)
        part.replace(archive)
        return adapter, (metrics, archive)

    def _fail(self, error: Exception) -> None:
        if is_out_of_memory(error):
            error = OutOfMemory(_NO_MEMORY)
        if not isinstance(error, CoserveError):
            log.error("job %s failed", self.spec.id, exc_info=error)
            error = CoserveError("The job failed inside the server; its log says more.", code="internal_error")
        self._end(JobEvent("failed", status="failed", message=error.message, level="error", error=error))

    def _end(self, event: JobEvent) -> bool:
        """Tell the last event, unless the job has ended already."""
        with self._lock:
            if self._ended:
                return False
            self._ended, self._turn = True, None
            self._listener(event)
            return True


_NO_MEMORY = (
    "The GPU's memory does not suffice for this job. Lower its micro_batch_tokens or max_length, or the server's "
    "kv_cache_tokens; or end what else uses the GPU."
)
_PUBLIC_NAMES = {"loss": "train_loss", "mean_token_accuracy": "train_mean_token_accuracy"}


def _write_metrics(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    public = [{_PUBLIC_NAMES.get(name, name): value for name, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in public for name in row))
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(public)
    part.replace(path)
