"""Checkpoints of a run: everything it needs to go on as if nothing had happened, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps done, tokens trained on, and the metrics of each step so far."""

    step: int = 0
    tokens: int = 0
    metrics: tuple[Mapping[str, float], ...] = ()


class Snapshot:
    """A copy of a run's tensors that was launched, and may not be complete yet; to be fetched from another thread."""

    def __init__(self, state: Mapping[str, Tensor]):
        self._state = state
        self._event: torch.cuda.Event | None = None
        self._device = next(iter(state.values())).device
        if self._device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._device))

    def on_cpu(self) -> dict[str, Tensor]:
        """Waits on the calling thread alone; the streams that compute do not notice."""
        if self._event is None:
            return dict(self._state)
        self._event.synchronize()
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            return {name: tensor.cpu() for name, tensor in self._state.items()}


def save_checkpoint(directory: Path, progress: Progress, state: Mapping[str, Tensor], keep: int = 3) -> Path:
    """Write `directory/step-N`, and drop all but the newest `keep`. Returns its path."""
    path = directory / f"step-{progress.step:06d}"
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(dict(state), part / "state.safetensors")
    (part / "progress.json").write_text(json.dumps(asdict(progress)))
    shutil.rmtree(path, ignore_errors=True)
    part.replace(path)
    for old in _checkpoints(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest_checkpoint(directory: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """The newest complete checkpoint, or None."""
    found = _checkpoints(directory)
    if not found:
        return None
    raw = json.loads((found[-1] / "progress.json").read_text())
    progress = Progress(raw["step"], raw["tokens"], tuple(raw["metrics"]))
    return progress, load_file(found[-1] / "state.safetensors")


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob("step-*") if p.is_dir() and p.suffix != ".part")
