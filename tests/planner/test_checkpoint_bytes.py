"""Bytes of weights, against checkpoints that `transformers` writes: small ones of each kind of layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from coserve.planner.shape import load_shape

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 128,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS = {
    "LlamaConfig": GROUPED,
    "MistralConfig": {**GROUPED, "head_dim": 16},
    "Qwen2Config": {**GROUPED, "tie_word_embeddings": True},
    "Qwen3Config": {**GROUPED, "head_dim": 32},
    "Gemma2Config": {**GROUPED, "head_dim": 16},
    "MixtralConfig": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3MoeConfig": {**GROUPED, **EXPERTS, "num_experts": 4, "head_dim": 16},
    "DeepseekV3Config": {
        **SMALL,
        **EXPERTS,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "topk_method": "noaux_tc",  # as the published file says
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_of_weights_are_the_checkpoints(name: str, tmp_path: Path) -> None:
    config = getattr(transformers, name)(**CONFIGS[name])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == config.model_type
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = [key for key in file.keys() if "rotary" not in key]  # noqa: SIM118  (not a dict)
        stored = sum(2 * file.get_tensor(key).numel() for key in names)  # some routers' vectors are kept in float32
    assert load_shape(tmp_path).weight_bytes("bfloat16") == stored
