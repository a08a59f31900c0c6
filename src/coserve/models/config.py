"""A model's `config.json`, read once into plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coserve.errors import ModelError
from coserve.models.files import read_json


@dataclass(frozen=True)
class ModelConfig:
    """What the decoder needs to know, in Hugging Face's words.

    Raises (from `ModelConfig.from_dict`): `ModelError` for an architecture that is not supported (naming it
    and those that are) or for a missing or contradictory field.
    """

    architecture: str  # "LlamaForCausalLM", ...
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None = None  # with "rope_type": "llama3" | "linear" | "yarn"; None = plain
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on q, k, v
    attention_output_bias: bool = False  # on o
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = field(default=())  # by layer; () = no layer has one
    torch_dtype: str | None = None
    quantization: dict[str, Any] | None = None  # `quantization_config`, as it is there

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelConfig:
        """Read `config.json` in `path`. Raises `ModelError`, as `from_dict` does."""
        return cls.from_dict(read_json(Path(path) / "config.json"))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read the content of a `config.json`, in the spelling of `transformers` 4 or 5."""
        fields = _Fields(config)
        architecture = _architecture(fields)
        family = _FAMILIES[architecture]
        _refuse_unsupported(fields)
        heads = fields.size("num_attention_heads")
        positions = fields.size("max_position_embeddings")
        rope_theta, rope_scaling = _rope(fields, positions)
        bias = fields.flag("attention_bias")
        return cls(
            architecture=architecture,
            vocab_size=fields.size("vocab_size"),
            hidden_size=fields.size("hidden_size"),
            intermediate_size=fields.size("intermediate_size"),
            num_hidden_layers=fields.size("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_key_value_heads(fields, heads),
            head_dim=_head_dim(fields, heads, family),
            max_position_embeddings=positions,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            attention_bias=bias if family.attention_bias is None else family.attention_bias,
            attention_output_bias=bias if family.output_bias is None else family.output_bias,
            mlp_bias=fields.flag("mlp_bias") if family.mlp_bias is None else family.mlp_bias,
            qk_norm=family.qk_norm,
            sliding_windows=family.windows(fields),
            torch_dtype=_dtype(fields),
            quantization=_quantization(fields),
        )


class _Fields:
    """Typed access to `config.json`; every error names the field."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def get(self, name: str, default: Any = None) -> Any:
        """The value; `default` if the field is absent. An explicit null stays null."""
        return self._config.get(name, default)

    def size(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"config.json: {name} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"config.json: {name} must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name)
        return positive(name, default if value is None else value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value not in (None, True, False):
            raise ModelError(f"config.json: {name} must be true or false, not {value!r}")
        return bool(value)


def positive(name: str, value: Any) -> float:
    """`value` as a float. Raises `ModelError` unless it is a number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelError(f"config.json: {name} must be a positive number, not {value!r}")
    return float(value)


# --- what differs between families ------------------------------------------------------------


def _no_windows(fields: _Fields) -> tuple[int | None, ...]:
    return ()


def _same_window_everywhere(fields: _Fields) -> tuple[int | None, ...]:
    """Mistral: one window for all layers; null turns it off, absent means 4096."""
    if fields.get("sliding_window", 4096) is None:
        return ()
    return (fields.size("sliding_window", 4096),) * fields.size("num_hidden_layers")


def _windows_by_layer(fields: _Fields) -> tuple[int | None, ...]:
    """Qwen: those that `layer_types` names; in files from before it, those from `max_window_layers` up."""
    layers = fields.size("num_hidden_layers")
    enabled = fields.flag("use_sliding_window") and fields.get("sliding_window", 4096) is not None
    kinds = fields.get("layer_types")
    if kinds is None:
        first = fields.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise ModelError(f"config.json: max_window_layers must be an integer, not {first!r}")
        kinds = ["sliding_attention" if enabled and i >= first else "full_attention" for i in range(layers)]
    _check_layer_types(kinds, layers, enabled)
    if "sliding_attention" not in kinds:
        return ()
    window = fields.size("sliding_window", 4096)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _check_layer_types(kinds: Any, layers: int, windows_enabled: bool) -> None:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ModelError(f"config.json: layer_types must be a list of {layers} entries, one for each layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"config.json: layer_types has {kind!r}; supported are full_attention and sliding_attention"
            )
    if "sliding_attention" in kinds and not windows_enabled:
        raise ModelError(
            "config.json: layer_types has sliding_attention, but use_sliding_window or sliding_window is off"
        )


@dataclass(frozen=True)
class _Family:
    """What an architecture fixes. A bias of None: `config.json` says."""

    attention_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None  # when config.json is silent; None = hidden_size / heads
    windows: Callable[[_Fields], tuple[int | None, ...]] = _windows_by_layer


_FAMILIES = {
    "LlamaForCausalLM": _Family(mlp_bias=None, windows=_no_windows),
    "MistralForCausalLM": _Family(attention_bias=False, output_bias=False, windows=_same_window_everywhere),
    "Qwen2ForCausalLM": _Family(attention_bias=True, output_bias=False),
    "Qwen3ForCausalLM": _Family(qk_norm=True, head_dim=128),
}
SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)


# --- single fields ----------------------------------------------------------------------------


def _architecture(fields: _Fields) -> str:
    names = fields.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelError("config.json: architectures is missing")
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"architecture {names[0]} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return names[0]


def _refuse_unsupported(fields: _Fields) -> None:
    activation = fields.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"config.json: hidden_act {activation!r} is not supported; supported is silu")


def _quantization(fields: _Fields) -> dict[str, Any] | None:
    value = fields.get("quantization_config")
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"config.json: quantization_config must be an object, not {value!r}")
    return value or None


def _key_value_heads(fields: _Fields, heads: int) -> int:
    key_value_heads = fields.size("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise ModelError(
            f"config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({key_value_heads})"
        )
    return key_value_heads


def _head_dim(fields: _Fields, heads: int, family: _Family) -> int:
    hidden = fields.size("hidden_size")
    if fields.get("head_dim") is None and family.head_dim is None and hidden % heads:
        raise ModelError(
            f"config.json: hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads}) "
            "when head_dim is absent"
        )
    head_dim = fields.size("head_dim", family.head_dim or hidden // heads)
    if head_dim % 2:
        raise ModelError(f"config.json: head_dim ({head_dim}) must be even, as rotary embeddings need pairs")
    return head_dim


def _dtype(fields: _Fields) -> str | None:
    name = fields.get("dtype") or fields.get("torch_dtype")
    return None if name is None else str(name).removeprefix("torch.")


# --- rotary embeddings ------------------------------------------------------------------------

_ROPE_FIELDS = {  # what each type must say
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),  # factor may be null: then it is the ratio of the context lengths
}
_OPTIONAL_NUMBERS = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def _rope(fields: _Fields, positions: int) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, rope_scaling) from either spelling of the file; scaling is None for plain RoPE."""
    parameters = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ModelError(f"config.json: rope_scaling must be an object, not {parameters!r}")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise ModelError("config.json: rope parameters that differ by layer type are not supported")
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
        raise ModelError(f"config.json: rope_type {kind!r} is not supported; supported are {', '.join(_ROPE_FIELDS)}")
    _refuse_partial_rotation(fields, parameters)
    theta = positive("rope_theta", parameters.get("rope_theta") or fields.number("rope_theta", 10000.0))
    if kind == "default":
        return theta, None
    for name in _ROPE_FIELDS[kind]:
        positive(f"{name} of rope type {kind}", parameters.get(name))
    if kind == "llama3" and parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
        raise ModelError("config.json: high_freq_factor must be above low_freq_factor")
    for name in _OPTIONAL_NUMBERS:
        if parameters.get(name):
            positive(name, parameters[name])
    rest = {name: value for name, value in parameters.items() if name not in ("type", "rope_type", "rope_theta")}
    return theta, _with_original_context({"rope_type": kind, **rest}, fields, positions)


def _with_original_context(scaling: dict[str, Any], fields: _Fields, positions: int) -> dict[str, Any]:
    """llama3 and yarn count from the context before it was stretched."""
    if scaling["rope_type"] in ("llama3", "yarn"):
        name = "original_max_position_embeddings"
        scaling[name] = fields.get(name) or scaling.get(name) or positions
        positive(name, scaling[name])
    return scaling


def _refuse_partial_rotation(fields: _Fields, parameters: Mapping[str, Any]) -> None:
    for source in (fields, parameters):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ModelError("config.json: a partial_rotary_factor other than 1 is not supported")
