"""What a training run is told, in PEFT's and OpenAI's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from coserve.errors import InvalidRequest
from coserve.models.matrices import LINEAR_MODULES


def _check(ok: bool, param: str, value: object, wanted: str) -> None:
    if not ok:
        raise InvalidRequest(f"{param} is {value!r}; it must be {wanted}.", param=param)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021). Raises `InvalidRequest` for a value out of its range."""

    r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        _check(1 <= self.r <= 512, "r", self.r, "between 1 and 512")
        _check(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0")
        _check(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "at least 0 and below 1")
        unknown = [m for m in self.targets if m not in LINEAR_MODULES]
        _check(
            bool(self.targets) and not unknown,
            "target_modules",
            self.target_modules,
            f"'all-linear' or some of {', '.join(LINEAR_MODULES)}",
        )

    @property
    def targets(self) -> tuple[str, ...]:
        return LINEAR_MODULES if self.target_modules == "all-linear" else tuple(self.target_modules)

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.r


@dataclass(frozen=True)
class TrainingConfig:
    """Raises `InvalidRequest` for a value out of its range."""

    method: Literal["lora", "full"] = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    n_epochs: int = 3
    batch_size: int = 8  # sequences of an optimizer step
    learning_rate: float = 2e-4
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.05  # share of the steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int | None = None  # tokens of a sequence; longer ones are cut. None: the model's context
    micro_batch_tokens: int | None = None  # of one forward and backward (`micro_batch_tokens`); gradients accumulate
    max_steps: int | None = None
    checkpoint_every: int = 50  # optimizer steps
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.method in ("lora", "full"), "method", self.method, "'lora' or 'full'")
        for name in ("n_epochs", "batch_size", "checkpoint_every"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "above 0 and at most 1")
        _check(0 <= self.warmup_ratio <= 1, "warmup_ratio", self.warmup_ratio, "between 0 and 1")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _check(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "above 0")
        _check(self.max_length is None or self.max_length >= 2, "max_length", self.max_length, "at least 2")
        for name in ("max_steps", "micro_batch_tokens"):
            _check(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        kinds = ("cosine", "linear", "constant")
        kind = self.lr_scheduler_type
        _check(kind in kinds, "lr_scheduler_type", kind, f"one of {', '.join(kinds)}")


def micro_batch_tokens(config: TrainingConfig, device: torch.device) -> int:
    """As configured, or what suits the device: a CPU is busy with few rows, a GPU wants thousands."""
    return config.micro_batch_tokens or (1024 if device.type == "cpu" else 4096)


def lora_learning_rate(hidden_size: int) -> float:
    """A peak rate for LoRA on a model of that width, where nobody says one: 2e-4 from 4096 on, more for narrower ones.

    Narrower models take, and need, larger steps: the best rate falls about as one over the width (Yang et al., 2022).
    """
    return 2e-4 * max(1.0, 4096 / hidden_size)
