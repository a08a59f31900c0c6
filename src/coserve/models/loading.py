"""Opening a model directory: its weights in the formats asked for, quantised ones kept for the next start."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from coserve.kernels.quantized import QuantizedWeight
from coserve.models import quantized_file
from coserve.models.checkpoint import Checkpoint
from coserve.models.config import ModelConfig
from coserve.models.matrices import Matrix, all_matrices
from coserve.models.placement import placement_on
from coserve.models.quantization import WeightFormats
from coserve.models.stored import stored_weights

log = logging.getLogger(__name__)


def open_checkpoint(
    path: Path, *, device: torch.device, dtype: torch.dtype | None, weights: str, cache: Path | None
) -> Checkpoint:
    """A model directory's weights in the formats and on the device asked for; see `Decoder.from_directory`."""
    config = ModelConfig.from_directory(path)
    stored = stored_weights(path, config)
    formats = WeightFormats.choose(config, weights, dtype, stored.quantized, device)
    checkpoint, placement = Checkpoint(config, stored, formats), placement_on(device)
    if formats.quantized and formats.weights != "fp8":
        made_of = quantized_file.identity(stored.files, weights)
        # A GPU quantises floats faster than a disk gives the result; unpacking others' integers is the CPU's work.
        make = stored.quantized or not placement.moves
        made = _quantized_matrices(checkpoint, made_of, _cache_file(path, weights, cache), make=make)
        checkpoint = replace(checkpoint, made=made)
    if not placement.moves:
        return checkpoint
    checkpoint = replace(checkpoint, placement=placement)
    return replace(checkpoint, made={m.name: checkpoint.matrix(m) for m in _shown(config, f"loading to {device}")})


def _cache_file(path: Path, weights: str, cache: Path | None) -> Path | None:
    """One for each directory and format: what was made of a checkpoint that is gone from there gives way."""
    if cache is None:
        return None
    place = path.resolve()
    return cache / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}-{weights}.safetensors"


def _quantized_matrices(
    checkpoint: Checkpoint, made_of: str, file: Path | None, *, make: bool
) -> Mapping[str, QuantizedWeight]:
    """Those that an earlier start has kept, or made now, if `make` says so."""
    kept = None
    if file is not None:
        kept = quantized_file.read(file, made_of)
        if kept is None and make:
            kept = _make(checkpoint, made_of, file)
    if kept is None and make:
        return dict(_each_quantized(checkpoint))
    return kept or {}


def _make(checkpoint: Checkpoint, made_of: str, file: Path) -> dict[str, QuantizedWeight] | None:
    log.info("quantising to %s, once: kept in %s", checkpoint.formats.weights, file)
    try:
        quantized_file.write(file, made_of, _each_quantized(checkpoint), len(all_matrices(checkpoint.config)))
    except OSError as error:
        log.warning("cannot keep quantised weights in %s: %s", file, error.strerror)
        return None
    return quantized_file.read(file, made_of)


def _each_quantized(checkpoint: Checkpoint) -> Iterator[tuple[str, QuantizedWeight]]:
    for matrix in _shown(checkpoint.config, f"quantising to {checkpoint.formats.weights}"):
        weight = checkpoint.matrix(matrix)
        if isinstance(weight, QuantizedWeight):
            yield matrix.name, weight


def _shown(config: ModelConfig, said: str) -> Iterable[Matrix]:
    """A model's matrices one after the other, with a bar on a terminal."""
    from rich.console import Console  # slow to import, and seldom needed
    from rich.progress import track

    screen = Console(stderr=True)
    return track(all_matrices(config), said, console=screen, transient=True, disable=not screen.is_terminal)
