"""What a fine-tuning job may be told, and the trainer's configuration that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from coserve.errors import InvalidRequest
from coserve.service.bodies import Body

if TYPE_CHECKING:
    from coserve.training import LoraConfig, TrainingConfig

Auto = Literal["auto"]
MOST_STEPS = 10**7
Positive = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Hyperparameters(Body):
    """OpenAI's three, each a number or "auto", and coserve's own (with the names of `TrainingConfig`).

    Unlike in other bodies an unknown field is a mistake: it would quietly train something else.
    """

    model_config = ConfigDict(extra="forbid")

    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] | None = None
    learning_rate_multiplier: Auto | Positive | None = None
    learning_rate: Positive | None = None
    max_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    lr_scheduler_type: Literal["cosine", "linear", "constant"] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] | None = None
    max_grad_norm: Positive | None = None
    max_length: Annotated[int, Field(ge=2, lt=1 << 31)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    lora_rank: Annotated[int, Field(ge=1, le=512)] | None = None
    lora_alpha: Positive | None = None
    lora_dropout: Fraction | None = None
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] | None = None

    def resolve(self, hidden_size: int) -> dict[str, Any]:
        """The values that will be used on a model of that width, as the job object shows them: no "auto" is left.

        Raises: `InvalidRequest` with `param`.
        """
        from coserve.training import TrainingConfig, lora_learning_rate

        default, usual_rate = TrainingConfig(), lora_learning_rate(hidden_size)
        multiplier = _number(self.learning_rate_multiplier)
        if multiplier is not None and self.learning_rate is not None:
            raise InvalidRequest(
                "Give either 'learning_rate' or 'learning_rate_multiplier'.",
                param="hyperparameters.learning_rate",
            )
        rate = self.learning_rate or usual_rate * (multiplier or 1.0)
        resolved: dict[str, Any] = {
            "n_epochs": _number(self.n_epochs) or default.n_epochs,
            "batch_size": _number(self.batch_size) or default.batch_size,
            "learning_rate_multiplier": rate / usual_rate,
            "learning_rate": rate,
            **self._lora(default.lora),
        }
        for name in _AS_GIVEN:
            if (value := getattr(self, name)) is not None:
                resolved[name] = value
        return resolved

    def _lora(self, default: LoraConfig) -> dict[str, Any]:
        """Alpha follows the rank in the default's proportion unless it is given."""
        rank = self.lora_rank or default.r
        targets = self.target_modules or default.target_modules
        return {
            "lora_rank": rank,
            "lora_alpha": self.lora_alpha or default.lora_alpha / default.r * rank,
            "lora_dropout": default.lora_dropout if self.lora_dropout is None else self.lora_dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
        }


_AS_GIVEN = (
    "max_steps",
    "warmup_ratio",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "checkpoint_every",
)


def _number(value: Any) -> Any:
    return None if value == "auto" else value


def training_config(resolved: dict[str, Any], seed: int) -> TrainingConfig:
    """The trainer's configuration for resolved hyperparameters, also those read back from the database."""
    from coserve.training import LoraConfig, TrainingConfig

    targets: Any = resolved["target_modules"]
    return TrainingConfig(
        lora=LoraConfig(
            r=resolved["lora_rank"],
            lora_alpha=resolved["lora_alpha"],
            lora_dropout=resolved["lora_dropout"],
            target_modules="all-linear" if targets == "all-linear" else tuple(targets),
        ),
        n_epochs=resolved["n_epochs"],
        batch_size=resolved["batch_size"],
        learning_rate=resolved["learning_rate"],
        seed=seed,
        **{name: resolved[name] for name in _AS_GIVEN if name in resolved},
    )
