"""The layers of a model, counted from its `config.json`: what each holds, reads and keeps of a token.

The families differ in how they attend (grouped queries, multi-head latent attention, sliding windows, linear attention)
and in their feed-forward block (dense, or experts of which a router chooses a few). The formulas are those of the
models' public definitions; `tests/planner/test_shape.py` holds the sums against the published parameter counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coserve.errors import ModelError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Attention:
    """Counts of one layer's attention, in elements."""

    weights: int  # matrices
    vectors: int  # biases, norms and sinks
    kv: int  # kept of a token
    pair: int  # multiply-adds for one query and one key: scores and values, all heads
    heads: int = 1  # chips that can share keys and values without copies: 1 where there is one compressed head
    prompt_pair: int | None = None  # the same over a prompt, where its keys are unpacked first (MLA); None = `pair`
    window: int | None = None  # tokens that are kept at most; None = all
    reach: int | None = None  # keys that a token attends to at most, where fewer than are kept (sparse attention)
    state: int = 0  # bytes kept of a sequence whatever its length (linear attention)

    def keys(self, context: float) -> float:
        """Keys that a token with `context` tokens before it attends to."""
        return min(context, *(limit for limit in (self.window, self.reach) if limit is not None), context)


@dataclass(frozen=True)
class FeedForward:
    """Counts of one layer's feed-forward block, in elements."""

    dense: int  # matrices that every token reads: a dense block, shared experts
    router: int = 0
    expert: int = 0  # of one routed expert
    experts: int = 0  # routed experts
    chosen: int = 0  # of them, for a token
    vectors: int = 0  # biases and norms

    def touched(self, tokens: float) -> float:
        """Distinct experts that `tokens` tokens are expected to choose, if each chooses evenly."""
        if not self.experts:
            return 0.0
        return self.experts * (1 - (1 - self.chosen / self.experts) ** tokens)


@dataclass(frozen=True)
class Layer:
    attention: Attention
    feed_forward: FeedForward
    norms: int


def text_part(config: Config) -> dict[str, Any]:
    """The decoder's part of a `config.json`, older spellings brought to today's."""
    part = {**config, **config.get("text_config", {})}
    for old, new in _OLD_SPELLING.items():
        if old in part and new not in part:
            part[new] = part[old]
    return part


_OLD_SPELLING = {
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_inner": "intermediate_size",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "top_k_experts": "num_experts_per_tok",
}


def size(config: Config, name: str, default: int | None = None) -> int:
    """A positive integer of the config. Raises `ModelError` if it is missing or none."""
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {name} must be a positive integer, not {value!r}")
    return value


def read_layers(config: Config) -> tuple[Layer, ...]:
    """The layers of a decoder, first to last, of what `text_part` gives. Raises `ModelError` for a missing field."""
    return tuple(
        Layer(_attention(config, index), _feed_forward(config, index), _norms(config))
        for index in range(size(config, "num_hidden_layers"))
    )


def _family(config: Config) -> str:
    return str(config.get("model_type", "llama")).removesuffix("_text")


# --- attention --------------------------------------------------------------------------------

_BIASED_QKV = ("qwen2", "phi", "gpt_oss")
_BIASED_OUTPUT = ("phi", "gpt_oss")
_NORMED_QK = ("qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_moe", "gemma3", "gemma4")


def _attention(config: Config, index: int) -> Attention:
    kind = _layer_kind(config, index)
    if kind == "linear_attention":
        return _gated_delta(config)
    if config.get("kv_lora_rank"):
        return _latent(config)
    return _grouped(
        config, sliding=kind != "full_attention", window=_window(config) if kind != "full_attention" else None
    )


def _layer_kind(config: Config, index: int) -> str:
    """ "full_attention", "sliding_attention", "chunked_attention" or "linear_attention"."""
    kinds = config.get("layer_types")
    if kinds:
        return str(kinds[index])
    family = _family(config)
    if config.get("attention_chunk_size"):  # Llama 4: every fourth layer sees everything
        return "full_attention" if (index + 1) % 4 == 0 else "chunked_attention"
    if family == "gemma2":
        return "sliding_attention" if index % 2 == 0 else "full_attention"
    if config.get("sliding_window_pattern"):
        return "full_attention" if (index + 1) % config["sliding_window_pattern"] == 0 else "sliding_attention"
    everywhere = family in ("mistral", "mixtral", "phi3") and config.get("sliding_window")
    return "sliding_attention" if everywhere else "full_attention"


def _window(config: Config) -> int:
    return size(config, "attention_chunk_size" if config.get("attention_chunk_size") else "sliding_window")


def _grouped(config: Config, sliding: bool, window: int | None) -> Attention:
    """Heads that share keys and values in groups (GQA); one group a head is plain multi-head attention."""
    family, hidden = _family(config), size(config, "hidden_size")
    heads = size(config, "num_attention_heads")
    kv_heads = size(config, "num_key_value_heads", heads)
    head = size(config, "head_dim", hidden // heads)
    shared_kv = False
    if family == "gemma4" and not sliding:
        kv_heads = size(config, "num_global_key_value_heads", kv_heads)
        head = size(config, "global_head_dim", head)
        shared_kv = bool(config.get("attention_k_eq_v"))  # values are the keys before their rotation
    q, kv = heads * head, kv_heads * head
    queries = 2 * q if config.get("attn_output_gate") else q
    vectors = 2 * head if family in _NORMED_QK else 0
    if family in _BIASED_QKV or config.get("attention_bias"):
        vectors += queries + 2 * kv
    if family in _BIASED_OUTPUT or (config.get("attention_bias") and family != "qwen2"):
        vectors += hidden
    if family == "gpt_oss":
        vectors += heads  # sinks
    weights = hidden * (queries + (kv if shared_kv else 2 * kv)) + q * hidden
    return Attention(weights, vectors, 2 * kv, 2 * q, kv_heads, window=window)


def _latent(config: Config) -> Attention:
    """Multi-head latent attention (DeepSeek-V2, 2024): a token keeps one compressed vector and one rotated key.

    `pair` counts the absorbed form that decoding uses: scores and values in the compressed space. Prompts use the plain
    form, whose keys are longer than values.
    """
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    rank, rope = size(config, "kv_lora_rank"), size(config, "qk_rope_head_dim")
    nope, value = size(config, "qk_nope_head_dim"), size(config, "v_head_dim")
    query_rank = int(config.get("q_lora_rank") or 0)
    if query_rank:
        weights = hidden * query_rank + query_rank * heads * (nope + rope)
    else:
        weights = hidden * heads * (nope + rope)
    weights += hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    vectors, kv, reach = rank + query_rank, rank + rope, None
    if config.get("index_topk"):  # DeepSeek-V3.2: a small indexer chooses the keys
        index_heads, index = size(config, "index_n_heads"), size(config, "index_head_dim")
        weights += query_rank * index_heads * index + hidden * (index + index_heads)
        vectors, kv, reach = vectors + 2 * index, kv + index, size(config, "index_topk")
    plain = heads * (nope + rope + value)
    return Attention(weights, vectors, kv, heads * (2 * rank + rope), prompt_pair=plain, reach=reach)


def _gated_delta(config: Config) -> Attention:
    """Gated DeltaNet (2024), the linear attention of Qwen3.5: a state of fixed size instead of keys and values."""
    hidden = size(config, "hidden_size")
    key_heads, value_heads = size(config, "linear_num_key_heads"), size(config, "linear_num_value_heads")
    key, value = size(config, "linear_key_head_dim"), size(config, "linear_value_head_dim")
    keys, values, kernel = key_heads * key, value_heads * value, size(config, "linear_conv_kernel_dim")
    convolved = 2 * keys + values
    weights = hidden * (convolved + values + 2 * value_heads) + values * hidden + convolved * kernel
    state = 4 * value_heads * key * value + 2 * convolved * (kernel - 1)  # float32, and the convolution's bfloat16
    return Attention(weights, 2 * value_heads + value, 0, 0, window=0, state=state)


# --- feed-forward -----------------------------------------------------------------------------

_NOT_GATED = ("gptj", "phi", "mpt", "gpt2")
_BIASED_MLP = ("gptj", "phi", "gpt2")


def _feed_forward(config: Config, index: int) -> FeedForward:
    family, hidden = _family(config), size(config, "hidden_size")
    wide = _dense_width(config)
    if not config.get("num_experts") or not _has_experts(config, index):
        matrices = 2 if family in _NOT_GATED else 3
        biases = wide + hidden if family in _BIASED_MLP else 0
        return FeedForward(matrices * hidden * wide, vectors=biases)
    experts, chosen = size(config, "num_experts"), size(config, "num_experts_per_tok")
    width = size(config, "moe_intermediate_size", size(config, "intermediate_size", 1))
    expert, router = 3 * hidden * width, hidden * experts
    if family == "gpt_oss":
        expert, router = expert + 2 * width + hidden, router + experts
    if config.get("topk_method") == "noaux_tc":
        router += experts  # the bias that balances the experts
    return FeedForward(3 * hidden * _shared_width(config, width), router, expert, experts, chosen, _moe_vectors(config))


def _dense_width(config: Config) -> int:
    if _family(config) == "mpt":
        return int(config.get("expansion_ratio", 4)) * size(config, "hidden_size")
    if config.get("intermediate_size_mlp"):  # Llama 4: the dense layers are wider than the experts
        return size(config, "intermediate_size_mlp")
    return size(config, "intermediate_size", 4 * size(config, "hidden_size"))


def _has_experts(config: Config, index: int) -> bool:
    if index in (config.get("mlp_only_layers") or ()) or index < config.get("first_k_dense_replace", 0):
        return False
    step = config.get("interleave_moe_layer_step") or config.get("decoder_sparse_step") or 1
    return (index + 1) % step == 0


def _shared_width(config: Config, expert_width: int) -> int:
    """Width of what runs beside the routed experts for every token."""
    if _family(config) == "llama4":
        return expert_width
    if _family(config) == "gemma4":
        return size(config, "intermediate_size")
    return config.get("shared_expert_intermediate_size") or config.get("n_shared_experts", 0) * expert_width


def _moe_vectors(config: Config) -> int:
    if _family(config) == "gemma4":  # three more norms, the router's scale by channel and by expert
        return 4 * size(config, "hidden_size") + size(config, "num_experts")
    return (
        size(config, "hidden_size") if config.get("shared_expert_intermediate_size") else 0
    )  # the shared expert's gate


def _norms(config: Config) -> int:
    family, hidden = _family(config), size(config, "hidden_size")
    if family in ("gemma2", "gemma3", "gemma4"):
        return 4 * hidden + (1 if family == "gemma4" else 0)  # before and after each block; a scalar of the layer
    if family in ("gptj", "phi"):
        return 2 * hidden  # one LayerNorm for both blocks
    if family == "gpt2":
        return 4 * hidden
    return 2 * hidden
