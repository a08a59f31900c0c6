"""The built-in model's shape and its initial weights, written as a Hugging Face directory."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CONTEXT = 2048  # tokens
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}


def write_config(directory: Path, vocabulary: int, eos: int, pad: int, dtype: str) -> None:
    """Writes config.json; `dtype` is what the weights beside it are stored in ("float32" or "bfloat16")."""
    config = {
        **SHAPE,
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def initial_weights(vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Float32 weights to start training from, by Hugging Face's names.

    Normal with standard deviation 0.02; projections that write into the residual stream are scaled down by
    sqrt(2 * layers), so that its size does not grow with depth. Norms are one.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    queries = SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    keys = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    inner = 0.02 / math.sqrt(2 * layers)

    def normal(rows: int, columns: int, deviation: float = 0.02) -> Tensor:
        return torch.empty(rows, columns).normal_(0.0, deviation, generator=generator)

    weights = {
        "model.embed_tokens.weight": normal(vocabulary, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for i in range(layers):
        layer = f"model.layers.{i}"
        weights |= {
            f"{layer}.input_layernorm.weight": torch.ones(hidden),
            f"{layer}.self_attn.q_proj.weight": normal(queries, hidden),
            f"{layer}.self_attn.k_proj.weight": normal(keys, hidden),
            f"{layer}.self_attn.v_proj.weight": normal(keys, hidden),
            f"{layer}.self_attn.o_proj.weight": normal(hidden, queries, inner),
            f"{layer}.post_attention_layernorm.weight": torch.ones(hidden),
            f"{layer}.mlp.gate_proj.weight": normal(ffn, hidden),
            f"{layer}.mlp.up_proj.weight": normal(ffn, hidden),
            f"{layer}.mlp.down_proj.weight": normal(hidden, ffn, inner),
        }
    return weights


def save_weights(weights: dict[str, Tensor], directory: Path, dtype: torch.dtype) -> int:
    """Writes model.safetensors in `dtype`; returns its size in bytes."""
    path = directory / "model.safetensors"
    save_file({name: w.to(dtype).contiguous() for name, w in weights.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes files that only their owner can read
    return path.stat().st_size
