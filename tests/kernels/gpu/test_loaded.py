"""A model that is loaded to a GPU, in each format: its logits are those of its own weights, computed on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coserve.kernels import KVCache, PagedLayout, gpu
from coserve.kernels.device import CPU
from coserve.models.checkpoint import Checkpoint
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.placement import OnGpu
from coserve.models.quantization import WeightFormats, floats
from coserve.models.stored import stored_weights
from tests.kernels.gpu.oracle import DEVICE
from tests.tiny import tiny_checkpoint

# Two prompts, then a step of each. On a GPU so many rows that products of many are met, too.
LENGTHS = (33, 70) if DEVICE == "cuda" else (3, 17)
STEPS = [((0, 0), LENGTHS), (LENGTHS, (1, 1))]
TABLES = ([4, 1, 7], [2, 5, 3, 0, 6])


def logits(decoder: Decoder, cache: KVCache) -> torch.Tensor:
    tokens = torch.randint(0, decoder.config.vocab_size, (200,), generator=torch.Generator().manual_seed(1))
    out, first = [], 0
    for starts, lengths in STEPS:
        segments = list(zip(starts, lengths, TABLES, strict=True))
        layout = PagedLayout.build(segments).to(decoder.device)
        ids = tokens[first : first + sum(lengths)].to(decoder.device)
        first += sum(lengths)
        with torch.inference_mode():
            out.append(decoder.logits(decoder.forward(ids, layout, cache)))
    return torch.cat(out).float().cpu()


def loaded(path: Path, weights: str) -> Decoder:
    """On the GPU; in the interpreter as if there were one."""
    if DEVICE == "cuda":
        return Decoder.from_directory(path, device="cuda", weights=weights)
    config, quantized = ModelConfig.from_directory(path), weights in ("int8", "int4", "fp8")
    formats = WeightFormats(weights, torch.bfloat16, quantized)
    checkpoint = Checkpoint(config, stored_weights(path, config), formats, OnGpu(CPU))
    return Decoder(checkpoint, max_positions=config.max_position_embeddings)


def widened(decoder: Decoder, path: Path) -> Decoder:
    """The same weights in float32, on the CPU."""
    oracle = Decoder.from_directory(path, dtype=torch.float32)
    for ours, theirs in zip(oracle.layers, decoder.layers, strict=True):
        for name, linear in ours.linears.items():
            linear.weight = floats(theirs.linears[name].weight).float().cpu()
    oracle.lm_head = floats(decoder.lm_head).float().cpu()
    return oracle


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "fp8"])
def test_logits_are_those_of_the_weights(tmp_path, monkeypatch, weights):
    path = tiny_checkpoint(tmp_path, "qwen3", dtype=torch.bfloat16, tie_word_embeddings=weights == "int8")
    decoder = loaded(path, weights)
    assert decoder.dtype == torch.bfloat16 and decoder.device.type == DEVICE
    assert all(tensor.device.type == DEVICE for tensor in decoder.memory())
    names = {"bf16": "bfloat16", "fp8": "float8"}
    assert decoder.weight_format == names.get(weights, weights)
    oracle = widened(decoder, path)
    wanted = logits(oracle, oracle.new_cache(8))
    c = decoder.config
    cache = decoder.new_cache(8)
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
        shape = (c.num_hidden_layers, 8, c.num_key_value_heads, c.head_dim)
        cache = KVCache(*shape, decoder.dtype, token_major=True)
    # 8-bit floats round the rows, too, where there are many.
    assert (logits(decoder, cache) - wanted).norm() < (0.1 if weights == "fp8" else 0.03) * wanted.norm()
