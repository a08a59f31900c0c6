"""The models to measure: the built-in one, random weights in a well-known shape, or any directory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from benchmarks.report import progress
from coserve.models.hub import BUILTIN, BUILTIN_DIRECTORY

SMOLLM2_135M = "smollm2-135m"
LLAMA_1B = "llama-1b"
LLAMA_126M = "llama-126m"

# As HuggingFaceTB/SmolLM2-135M's config.json says.
SMOLLM2_135M_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.041666666666666664,
    "vocab_size": 49152,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

# 1.1 billion weights, with a head of its own as most models of 7 billion and more have.
LLAMA_1B_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "vocab_size": 32000,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

# A quarter of its layers, half as wide: for a minute's run.
LLAMA_126M_CONFIG: dict[str, Any] = LLAMA_1B_CONFIG | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}

SHAPES = {SMOLLM2_135M: SMOLLM2_135M_CONFIG, LLAMA_1B: LLAMA_1B_CONFIG, LLAMA_126M: LLAMA_126M_CONFIG}
_END = "<|endoftext|>"
_LAYOUT = 1  # changes when the files that are written do, so that older ones are not used


@dataclass(frozen=True)
class BenchmarkModel:
    name: str
    path: Path


def find_models(names: Sequence[str]) -> Iterator[BenchmarkModel]:
    """The models by name, made where they have to be; without the built-in one if this checkout lacks it.

    Raises `SystemExit` for a name that is neither known nor a directory.
    """
    for name in names:
        if name == BUILTIN:
            if (BUILTIN_DIRECTORY / "config.json").is_file():
                yield BenchmarkModel(BUILTIN, BUILTIN_DIRECTORY)
            else:
                progress("the built-in model is not part of this checkout: left out")
        elif name in SHAPES:
            yield BenchmarkModel(name, _cached(name))
        elif (Path(name) / "config.json").is_file():
            yield BenchmarkModel(Path(name).resolve().name, Path(name))
        else:
            raise SystemExit(f"{name}: neither {BUILTIN}, {', '.join(SHAPES)} nor a model directory")


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coserve-benchmarks"


def _cached(name: str) -> Path:
    """The checkpoint of a shape in the cache directory, up to 2.2 GB; made there the first time."""
    cache = cache_directory()
    directory = cache / f"{name}-random-{_LAYOUT}"
    if not directory.is_dir():
        progress(f"making a random-weight model of {name}'s shape in {directory}")
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=cache))
        write_checkpoint(part, SHAPES[name])
        try:
            part.rename(directory)
        except OSError:  # another run was faster
            shutil.rmtree(part)
    return directory


def write_checkpoint(directory: Path, config: dict[str, Any], seed: int = 0) -> None:
    """A LlamaForCausalLM with random bfloat16 weights, and a byte-level tokenizer."""
    write_without_weights(directory, config)
    save_file(dict(_random_weights(config, seed)), directory / "model.safetensors", metadata={"format": "pt"})


def write_without_weights(directory: Path, config: dict[str, Any]) -> None:
    """`config.json` and a byte-level tokenizer."""
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _byte_tokenizer(config["vocab_size"]).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _END, "eos_token": _END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _random_weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * config["initializer_range"]).bfloat16()

    yield "model.embed_tokens.weight", random(config["vocab_size"], hidden)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", torch.ones(hidden, dtype=torch.bfloat16)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{layer}.self_attn.{name}_proj.weight", random(rows, hidden)
        yield f"{layer}.self_attn.o_proj.weight", random(hidden, q)
        yield f"{layer}.mlp.gate_proj.weight", random(ffn, hidden)
        yield f"{layer}.mlp.up_proj.weight", random(ffn, hidden)
        yield f"{layer}.mlp.down_proj.weight", random(hidden, ffn)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", random(config["vocab_size"], hidden)


def _byte_tokenizer(vocabulary: int) -> Tokenizer:
    """A token for each byte, and strings of bytes that no text is encoded to, so that every id is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    strings = ("".join(letters) for length in (1, 2, 3) for letters in product(alphabet, repeat=length))
    vocab = {_END: 0} | {token: i for i, token in zip(range(1, vocabulary), strings, strict=False)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    return tokenizer
