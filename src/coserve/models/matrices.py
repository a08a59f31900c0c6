"""A model's matrices, and which of a checkpoint's modules each is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coserve.models.config import ModelConfig

BLOCK_OF = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
LINEAR_MODULES = tuple(BLOCK_OF)
HEAD = "lm_head"
EMBEDDING = "embed_tokens"


@dataclass(frozen=True)
class Matrix:
    """Modules that read the same input, one below the other: [sum of rows, columns]."""

    name: str  # "layers.0.qkv"
    modules: Mapping[str, int]  # rows of each by its name in the checkpoint: "layers.0.self_attn.q_proj"
    columns: int

    @property
    def parts(self) -> list[tuple[str, int, int]]:
        """Each module's short name ("q_proj"), first row and last row + 1."""
        parts, first = [], 0
        for module, rows in self.modules.items():
            parts.append((module.rpartition(".")[2], first, first + rows))
            first += rows
        return parts


def module_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) features of every linear module of a layer."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (hidden, q),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (q, hidden),
        "gate_proj": (hidden, ffn),
        "up_proj": (hidden, ffn),
        "down_proj": (ffn, hidden),
    }


def layer_matrices(config: ModelConfig, index: int) -> dict[str, Matrix]:
    """A layer's matrices: "qkv", "o", "gate_up", "down"."""
    sizes = module_sizes(config)

    def matrix(name: str, *modules: str) -> Matrix:
        rows = {f"layers.{index}.{BLOCK_OF[module]}.{module}": sizes[module][1] for module in modules}
        return Matrix(f"layers.{index}.{name}", rows, sizes[modules[0]][0])

    return {
        "qkv": matrix("qkv", "q_proj", "k_proj", "v_proj"),
        "o": matrix("o", "o_proj"),
        "gate_up": matrix("gate_up", "gate_proj", "up_proj"),
        "down": matrix("down", "down_proj"),
    }


def head_matrix(config: ModelConfig) -> Matrix:
    """The output matrix; the embedding's own where they are tied."""
    module = EMBEDDING if config.tie_word_embeddings else HEAD
    return Matrix(HEAD, {module: config.vocab_size}, config.hidden_size)


def all_matrices(config: ModelConfig) -> list[Matrix]:
    layers = (layer_matrices(config, i).values() for i in range(config.num_hidden_layers))
    return [*(matrix for layer in layers for matrix in layer), head_matrix(config)]
