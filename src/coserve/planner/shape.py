"""A model's shape: its parameters, bytes and FLOPs, from a Hugging Face `config.json`."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from coserve.errors import InvalidRequest, ModelError
from coserve.planner.formats import element_bytes, number_format
from coserve.planner.layers import Config, Layer, read_layers, size, text_part


@dataclass(frozen=True)
class ModelShape:
    """What the counts need of a model. Elements are of matrices and vectors; bytes follow from a number format."""

    name: str
    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # width of a dense layer's feed-forward block
    experts: int  # routed experts of a layer; 0 = dense
    experts_per_token: int
    tied: bool  # the output matrix is the embedding
    extra: int  # elements beside layers, embedding and output matrix: the last norm, biases of the output
    experts_only: bool  # 4-bit checkpoints keep everything but the experts in 16 bits
    stack: tuple[Layer, ...]  # one entry a layer

    @cached_property
    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """The distinct layers, each with how many there are."""
        return tuple(Counter(self.stack).items())

    @property
    def embedding(self) -> int:
        """Elements of the embedding, which is read by row: a token's row only."""
        return self.vocab * self.hidden

    def parameters(self) -> int:
        """All parameters; a tied output matrix counts once."""
        return self._always + self._experts(lambda f: f.experts) + (0 if self.tied else self.embedding)

    def active_parameters(self) -> int:
        """Those read for one token: of the experts the chosen ones, and the output matrix, not the embedding."""
        return self._always + self._experts(lambda f: f.chosen)

    def weight_bytes(self, format: str) -> float:
        """Bytes of all weights. In `format` are the layers' matrices (or the experts only, as published checkpoints
        have it); embedding, output matrix, routers and vectors stay in 16 bits. Raises `InvalidRequest`."""
        return self.read_bytes(format, tokens=float("inf")) + (0 if self.tied else self.embedding * _plain(format))

    def read_bytes(self, format: str, tokens: float) -> float:
        """Bytes of the weights that a step over `tokens` tokens reads."""
        return self.dense_bytes(format) + self.expert_bytes(format, tokens)

    def dense_bytes(self, format: str) -> float:
        """Bytes of the weights that every step reads: all but the routed experts, and one embedding-sized matrix."""
        quantised, plain = element_bytes(format), _plain(format)
        dense = plain if self.experts_only and quantised < 1 else quantised
        total = (self.embedding + self.extra) * plain
        for layer, count in self.kinds:
            part = layer.feed_forward
            total += count * (layer.attention.weights + part.dense) * dense
            total += count * (layer.attention.vectors + layer.norms + part.vectors + part.router) * plain
        return total

    def expert_bytes(self, format: str, tokens: float) -> float:
        """Bytes of the routed experts that any of `tokens` tokens are expected to choose, if each chooses evenly."""
        each = element_bytes(format)
        parts = ((layer.feed_forward, count) for layer, count in self.kinds)
        return sum(count * part.expert * part.touched(tokens) * each for part, count in parts)

    def kv_bytes(self, context: float, kv_format: str = "bfloat16") -> float:
        """Bytes that one sequence with `context` tokens keeps: keys and values, or MLA's compressed ones, up
        to a layer's window, and the states of linear attention."""
        each = element_bytes(kv_format)
        total = 0.0
        for layer, count in self.kinds:
            kept = context if layer.attention.window is None else min(context, layer.attention.window)
            total += count * (layer.attention.kv * kept * each + layer.attention.state)
        return total

    def kv_read_bytes(self, context: float, kv_format: str = "bfloat16") -> float:
        """Bytes of them that decoding one token reads: less than all where attention chooses its keys."""
        each = element_bytes(kv_format)
        return sum(
            count * (layer.attention.kv * layer.attention.keys(context) * each + layer.attention.state)
            for layer, count in self.kinds
        )

    def forward_flops(self, tokens: float, context: float) -> float:
        """FLOPs of decoding `tokens` tokens that attend to `context` keys each."""
        return self.matrix_flops(tokens) + self.attention_flops(tokens, context)

    def matrix_flops(self, tokens: float) -> float:
        """FLOPs of the products with weights, for `tokens` tokens."""
        return 2 * tokens * self.active_parameters()

    def expert_flops(self, tokens: float) -> float:
        """Those of `matrix_flops` in routed experts."""
        return 2 * tokens * self._experts(lambda f: f.chosen)

    def attention_flops(self, tokens: float, context: float, prompt: bool = False) -> float:
        """FLOPs of scores and values of `tokens` tokens that attend to `context` keys each (in a `prompt`: half of it
        on average)."""
        parts = ((layer.attention, count) for layer, count in self.kinds)
        return (
            2
            * tokens
            * sum(count * ((a.prompt_pair if prompt else None) or a.pair) * a.keys(context) for a, count in parts)
        )

    def kv_chips(self, chips: int) -> int:
        """Over how many of `chips` the keys and values of a sequence spread without copies."""
        return min(chips, max(layer.attention.heads for layer, _ in self.kinds))

    @cached_property
    def moe_layers(self) -> int:
        return sum(count for layer, count in self.kinds if layer.feed_forward.experts)

    @cached_property
    def _always(self) -> int:
        """Elements that every token needs: one embedding-sized matrix and the layers without their experts."""
        return self.embedding + self.extra + sum(count * _without_experts(layer) for layer, count in self.kinds)

    def _experts(self, number: Any) -> int:
        return sum(count * layer.feed_forward.expert * number(layer.feed_forward) for layer, count in self.kinds)

    @classmethod
    def from_config(cls, name: str, config: Config) -> ModelShape:
        """Read the content of a `config.json`. Raises `ModelError` for what is missing or contradictory."""
        part = text_part(config)
        hidden, heads = size(part, "hidden_size"), size(part, "num_attention_heads")
        stack = read_layers(part)
        experts = max(layer.feed_forward.experts for layer in stack)
        return cls(
            name=name,
            layers=len(stack),
            hidden=hidden,
            vocab=size(part, "vocab_size"),
            heads=heads,
            kv_heads=size(part, "num_key_value_heads", heads),
            head_dim=size(part, "head_dim", hidden // heads),
            intermediate=size(part, "intermediate_size", part.get("moe_intermediate_size") or 4 * hidden),
            experts=experts,
            experts_per_token=size(part, "num_experts_per_tok") if experts else 0,
            tied=_tied(config, part),
            extra=_extra(part),
            experts_only=any(
                "attn" in m for m in (part.get("quantization_config") or {}).get("modules_to_not_convert", ())
            ),
            stack=stack,
        )


def load_shape(model: str | Path) -> ModelShape:
    """A known model by its hub id (or a usual short form), a path to a `config.json` or its folder, or a size ("70B").

    Raises `InvalidRequest` for an unknown name, with known ones that are near; `ModelError` for a bad `config.json`.
    """
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return _from_file(path)
    return named_shape(str(model))


def named_shape(text: str) -> ModelShape:
    """A known model or a size, whatever files there are. Raises `InvalidRequest` likewise."""
    known = _by_name().get(_key(text))
    if known is not None:
        return _known(known)
    parameters = _SIZE.fullmatch(text.strip())
    if parameters:
        return typical_shape(float(parameters[1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[parameters[2].upper()])
    near = difflib.get_close_matches(_key(text), _by_name(), n=5, cutoff=0.5)
    names = ", ".join(dict.fromkeys(_by_name()[key] for key in near))
    hint = f"did you mean {names}?" if near else "give a known hub id, a path to a config.json or a size such as 70B"
    raise InvalidRequest(f"unknown model {text!r}: {hint}", param="model")


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([BMT])", re.IGNORECASE)


def known_models() -> tuple[str, ...]:
    """Hub ids of the models whose configuration ships with the package."""
    return tuple(sorted(_sources()))


def typical_shape(parameters: float) -> ModelShape:
    """A dense decoder of that size in Llama 3's proportions: about 12.5 hidden^2 a layer, hidden = 112 layers.

    Raises `InvalidRequest` below 100 million or above 10^13.
    """
    if not 1e8 <= parameters <= 1e13:
        raise InvalidRequest(f"a size must lie between 100M and 10T, not {parameters:.3g}", param="model")
    layers = max(4, round((parameters / (12.5 * 112**2)) ** (1 / 3)))
    heads = max(8, 8 * round(112 * layers / 128 / 8))
    hidden = 128 * heads
    vocab = 128256 if parameters > 4e9 else 32000
    attention = 2 * hidden * hidden + 2 * hidden * 1024
    wide = ((parameters - 2 * vocab * hidden) / layers - attention) / (3 * hidden)
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": max(1, round(wide)),
        "vocab_size": vocab,
    }
    return ModelShape.from_config(f"{parameters / 1e9:g}B", config)


def _plain(format: str) -> float:
    """Bytes of what is not quantised."""
    return 4.0 if number_format(format) == "float32" else 2.0


def _without_experts(layer: Layer) -> int:
    attention, part = layer.attention, layer.feed_forward
    return attention.weights + attention.vectors + layer.norms + part.dense + part.router + part.vectors


def _tied(config: Config, part: Config) -> bool:
    """Gemma and MPT tie unless told otherwise; the outer file of a multi-modal model is the one that counts."""
    default = str(part.get("model_type", "")).startswith(("gemma", "mpt"))
    return bool(config.get("tie_word_embeddings", part.get("tie_word_embeddings", default)))


def _extra(part: Config) -> int:
    """The last norm; GPT-J and Phi-2 have a LayerNorm and a biased output."""
    hidden, family = size(part, "hidden_size"), part.get("model_type")
    if family in ("gptj", "phi"):
        return 2 * hidden + size(part, "vocab_size")
    return hidden


def _from_file(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return ModelShape.from_config(str(config.get("_name_or_path") or path.parent.name or path), config)


@cache
def _known(name: str) -> ModelShape:
    text = (resources.files("coserve.planner") / "models" / f"{name.replace('/', '--')}.json").read_text(
        encoding="utf-8"
    )
    return ModelShape.from_config(name, json.loads(text))


@cache
def _sources() -> dict[str, dict[str, Any]]:
    """By hub id: where the configuration was read, its licence, and other names."""
    text = (resources.files("coserve.planner") / "models" / "sources.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _by_name() -> dict[str, str]:
    """Hub ids by the key of every name that they are known by."""
    names = {_key(alias): name for name, entry in _sources().items() for alias in entry.get("aliases", ())}
    return names | {_key(name): name for name in _sources()}


def _key(name: str) -> str:
    """A name without its owner, letter case, punctuation and what does not change the shape."""
    last = name.strip().rsplit("/", 1)[-1].lower().removeprefix("meta-")
    last = re.sub(r"[-_ ](instruct|chat|it|hf|base|fp8|bf16|fp4|nvfp4)(?![a-z0-9])", "", last)
    return re.sub(r"[^a-z0-9.]", "", last)
