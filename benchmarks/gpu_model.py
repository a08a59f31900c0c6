"""A random-weight model of Llama 3.1 8B's shape, made where it runs: no file, no copy, seconds.

A module's numbers follow from its name alone, so a peer in another process makes itself the same weights.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.models import LLAMA_1B_CONFIG
from coserve.engine import Engine, EngineConfig
from coserve.kernels.gpu.formats import QuantizedRows
from coserve.kernels.quantized import quantize
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.matrices import EMBEDDING, HEAD, Matrix
from coserve.models.quantization import WeightFormats

Config = dict[str, Any]  # a config.json
WEIGHTS = ("bf16", "int8", "fp8", "int4")

# As meta-llama/Llama-3.1-8B's config.json says, but for the ids of its special tokens.
LLAMA_8B_CONFIG: Config = LLAMA_1B_CONFIG | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "vocab_size": 128256,
}

_FP8 = torch.float8_e4m3fn
_FP8_BLOCK = 128


@dataclass(frozen=True)
class RandomCheckpoint:
    """Stands in for `models.checkpoint.Checkpoint`: the same methods, and nothing on disk."""

    config: ModelConfig
    weights: str  # one of WEIGHTS
    device: torch.device

    @property
    def formats(self) -> WeightFormats:
        if self.device.type == "cpu":
            return WeightFormats.choose(self.config, self.weights, None, False)
        return WeightFormats(self.weights, torch.bfloat16, quantized=self.weights != "bf16")

    def matrix(self, matrix: Matrix) -> Any:
        modules = [self.module(name, rows, matrix.columns) for name, rows in matrix.modules.items()]
        if self.device.type == "cpu":
            return self.formats.matrix(matrix, modules)
        weights = "int8" if (self.weights, matrix.name) == ("int4", HEAD) else self.weights
        return on_gpu(torch.cat(modules), weights)

    def vector(self, name: str, size: int) -> Tensor:
        return (1 + 0.1 * self.module(name.removesuffix(".weight"), 1, size)[0]).to(self.formats.dtype)

    def embedding(self) -> Tensor:
        return self.module(EMBEDDING, self.config.vocab_size, self.config.hidden_size)

    def module(self, name: str, rows: int, columns: int) -> Tensor:
        """A module's weights, bfloat16 [rows, columns], with products as large as their inputs."""
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        numbers = torch.randn(rows, columns, generator=generator, device=self.device, dtype=torch.bfloat16)
        return numbers.mul_(columns**-0.5)


def on_gpu(dense: Tensor, weights: str) -> Tensor | QuantizedRows:
    """A matrix in the format that a GPU's kernels read."""
    if weights == "bf16":
        return dense
    if weights == "fp8":
        return _fp8(dense)
    return QuantizedRows.of(quantize(dense, 8 if weights == "int8" else 4), dense.device)


def _fp8(dense: Tensor) -> QuantizedRows:
    """With a scale for each square block."""
    rows, columns = dense.shape
    pad = (0, -columns % _FP8_BLOCK, 0, -rows % _FP8_BLOCK)
    blocks = torch.nn.functional.pad(dense.float(), pad).unflatten(0, (-1, _FP8_BLOCK)).unflatten(2, (-1, _FP8_BLOCK))
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / torch.finfo(_FP8).max
    rounded = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns].to(_FP8)
    return QuantizedRows.of_blocks(rounded, scales, _FP8_BLOCK)


def random_decoder(config: Config, weights: str, device: str) -> Decoder:
    checkpoint = RandomCheckpoint(ModelConfig.from_dict(config), weights, torch.device(device))
    with torch.device(device):
        return Decoder(checkpoint, max_positions=config["max_position_embeddings"])  # type: ignore[arg-type]


def random_engine(directory: Path, weights: str, device: str, config: EngineConfig) -> Engine:
    """An engine as users start it, but for its weights. `directory`: of `config.json` and a tokenizer; the chip's
    measurement is kept there, too."""
    described: Config = json.loads((directory / "config.json").read_text())
    made: Callable[..., Decoder] = lambda *_, **__: random_decoder(described, weights, device)  # noqa: E731
    place = {} if device == "cpu" else {"device": device}
    with patch.object(Decoder, "from_directory", made):
        return Engine.from_pretrained(directory, name="random", weights=weights, home=directory, config=config, **place)
