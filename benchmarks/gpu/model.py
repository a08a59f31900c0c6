"""A random-weight model of Llama 3.1 8B's shape, made where it runs: no file, no copy, seconds.

A tensor's numbers follow from its name alone, so a peer in another process makes itself the same weights.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.models import LLAMA_1B_CONFIG
from coserve.engine import Engine, EngineConfig
from coserve.kernels.device import choose_device, is_gpu
from coserve.kernels.linear import Weight
from coserve.models.checkpoint import Checkpoint
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.matrices import EMBEDDING, HEAD, all_matrices
from coserve.models.placement import OnGpu, Placement
from coserve.models.quantization import WeightFormats
from coserve.models.stored import StoredWeights

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

Shape = tuple[int, ...]


class MadeThere(OnGpu):
    """Weights that are made in the GPU's memory, and need not be moved to it."""

    def modules(self, modules: Sequence[Weight]) -> list[Weight]:
        return list(modules)


def shapes(config: ModelConfig) -> dict[str, Shape]:
    """Of a checkpoint's tensors, by Hugging Face's names without the leading "model."."""
    hidden = config.hidden_size
    named: dict[str, Shape] = {f"{EMBEDDING}.weight": (config.vocab_size, hidden), "norm.weight": (hidden,)}
    for matrix in all_matrices(config):
        named |= {f"{module}.weight": (rows, matrix.columns) for module, rows in matrix.modules.items()}
    for layer in range(config.num_hidden_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            named[f"layers.{layer}.{norm}.weight"] = (hidden,)
    return named


def full_name(name: str) -> str:
    """As checkpoints have it."""
    return name if name.startswith(HEAD) else f"model.{name}"


def random_tensor(name: str, shape: Shape, device: torch.device) -> Tensor:
    """In bfloat16: a norm's weights are about one, a matrix's products about as large as their inputs."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    numbers = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    return 1 + 0.1 * numbers if len(shape) == 1 else numbers.mul_(shape[1] ** -0.5)


def random_decoder(config: Config, weights: str, device: str) -> Decoder:
    """`weights`: as for `Decoder.from_directory`, whose way from stored tensors to a model it takes."""
    described, place = ModelConfig.from_dict(config), choose_device(device)
    known = shapes(described)
    stored = StoredWeights(lambda name: random_tensor(name, known[name], place), files=())
    formats = WeightFormats.choose(described, weights, None, False, place)
    placement = MadeThere(place) if is_gpu(place) else Placement()
    checkpoint = Checkpoint(described, stored, formats, placement)
    return Decoder(checkpoint, max_positions=described.max_position_embeddings)


def random_engine(directory: Path, weights: str, device: str, config: EngineConfig) -> Engine:
    """An engine as users start it, but for its weights. `directory`: of `config.json` and a tokenizer; the chip's
    measurement is kept there, too."""
    described: Config = json.loads((directory / "config.json").read_text())
    made: Callable[..., Decoder] = lambda *_, **__: random_decoder(described, weights, device)  # noqa: E731
    with patch.object(Decoder, "from_directory", made):
        return Engine.from_pretrained(
            directory, name="random", weights=weights, device=device, home=directory, config=config
        )
