"""Frequencies of rotary position embeddings, plain or stretched over a longer context."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from coserve.errors import ModelError
from coserve.models.config import ModelConfig


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """How fast each pair of a head's dimensions turns.

    Returns float32 [head_dim / 2], radians per position, and the factor that multiplies sine and cosine.
    Raises `ModelError` for a rope type that is not supported.
    """
    plain = 1.0 / config.rope_theta ** _exponents(config.head_dim)
    scaling = config.rope_scaling or {"rope_type": "default"}
    match scaling["rope_type"]:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / scaling["factor"], 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(config, scaling)
        case kind:
            raise ModelError(f"rope type {kind!r} is not supported; supported are default, linear, llama3, yarn")


def _exponents(dim: int) -> Tensor:
    """[dim / 2]: 0, 2/dim, 4/dim, ..."""
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _llama3(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Long waves are slowed down by `factor`, short ones kept, those between are blended."""
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain  # positions per turn
    kept = (context / wavelength - low) / (high - low)
    blended = (1 - kept) * plain / factor + kept * plain
    stretched = torch.where(wavelength > context / low, plain / factor, plain)
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return torch.where(between, blended, stretched)


def _yarn(config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): what turns often within the original context is kept, the rest stretched."""
    dim, base = config.head_dim, config.rope_theta
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or config.max_position_embeddings / original

    def dimension_of(turns: float) -> float:
        """The (fractional) dimension that makes so many turns within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_of(scaling.get("beta_fast") or 32)
    high = dimension_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    turns = base ** _exponents(dim)
    return (1 / (factor * turns)) * (1 - kept) + (1 / turns) * kept, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: dict[str, Any], factor: float) -> float:
    """A longer context spreads attention thinner; this sharpens it again."""

    def sharpening(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return sharpening(mscale) / sharpening(mscale_all_dim)
    return sharpening(1.0)
