"""Opening a model directory: its weights in the formats asked for, quantised ones kept for the next start."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from coserve.kernels.quantized import QuantizedWeight
from coserve.models import quantized_file
from coserve.models.checkpoint import Checkpoint
from coserve.models.config import ModelConfig
from coserve.models.matrices import all_matrices
from coserve.models.quantization import WeightFormats
from coserve.models.stored import stored_weights

log = logging.getLogger(__name__)


def open_checkpoint(path: Path, *, dtype: torch.dtype | None, weights: str, cache: Path | None) -> Checkpoint:
    """A model directory's weights in the formats asked for; see `Decoder.from_directory`."""
    config = ModelConfig.from_directory(path)
    stored = stored_weights(path, config)
    checkpoint = Checkpoint(config, stored, WeightFormats.choose(config, weights, dtype, stored.quantized))
    if not checkpoint.formats.quantized:
        return checkpoint
    made_of = quantized_file.identity(stored.files, weights)
    return replace(checkpoint, made=_quantized_matrices(checkpoint, made_of, _cache_file(path, weights, cache)))


def _cache_file(path: Path, weights: str, cache: Path | None) -> Path | None:
    """One for each directory and format: what was made of a checkpoint that is gone from there gives way."""
    if cache is None:
        return None
    place = path.resolve()
    return cache / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}-{weights}.safetensors"


def _quantized_matrices(checkpoint: Checkpoint, made_of: str, file: Path | None) -> Mapping[str, QuantizedWeight]:
    """Those that an earlier start has kept, or made now."""
    kept = None
    if file is not None:
        kept = quantized_file.read(file, made_of) or _make(checkpoint, made_of, file)
    return dict(_each_quantized(checkpoint)) if kept is None else kept


def _make(checkpoint: Checkpoint, made_of: str, file: Path) -> dict[str, QuantizedWeight] | None:
    log.info("quantising to %s, once: kept in %s", checkpoint.formats.weights, file)
    try:
        quantized_file.write(file, made_of, _each_quantized(checkpoint), len(all_matrices(checkpoint.config)))
    except OSError as error:
        log.warning("cannot keep quantised weights in %s: %s", file, error.strerror)
        return None
    return quantized_file.read(file, made_of)


def _each_quantized(checkpoint: Checkpoint) -> Iterator[tuple[str, QuantizedWeight]]:
    """One after the other, with a bar on a terminal."""
    from rich.console import Console  # slow to import, and seldom needed
    from rich.progress import track

    screen = Console(stderr=True)
    matrices = all_matrices(checkpoint.config)
    said = f"quantising to {checkpoint.formats.weights}"
    for matrix in track(matrices, said, console=screen, transient=True, disable=not screen.is_terminal):
        weight = checkpoint.matrix(matrix)
        if isinstance(weight, QuantizedWeight):
            yield matrix.name, weight
