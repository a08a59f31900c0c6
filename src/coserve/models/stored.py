"""The weights of a model directory as they are on disk, of whichever format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coserve.kernels.linear import Weight
from coserve.models.config import ModelConfig
from coserve.models.weights import load_weights


@dataclass(frozen=True)
class StoredWeights:
    """What is on disk, read when asked for: tensors by Hugging Face's names, without the leading "model."."""

    get: Callable[[str], Weight | None]
    quantized: bool = False  # whether there are matrices of integers among them


def stored_weights(path: Path, config: ModelConfig) -> StoredWeights:
    """The weights of a model directory. Raises `ModelError`, naming the file."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_weights(path)}
    return StoredWeights(tensors.get)
