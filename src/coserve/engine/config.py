"""The engine's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from coserve.errors import InvalidRequest

Protect = float | Literal["goals"]


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine, and how far lower priorities and training may slow the highest priority.

    `protect`: a factor (1.10: they may slow its tokens by at most a tenth; 1.0: they run only while nobody of a higher
    priority does), or "goals": they may use all the time up to its TTFT and ITL goals.
    """

    max_num_seqs: int = 64  # requests in a batch
    max_batch_tokens: int = 0  # tokens in a step: the largest chunk of a prompt; 0: 256 on a CPU, 8192 on a GPU
    max_waiting: int = 1024  # requests of the same or a higher priority in the queue; more are refused
    kv_cache_tokens: int | None = None  # None: as many as memory suggests, see `cache_size.py`
    protect: Protect = 1.10
    ttft_goal: float = 1.0  # seconds
    itl_goal: float = 0.0  # seconds; while others wait, prompts are cut to keep to it; 0: 0.1 on a CPU, 0.05 on a GPU
    aging_seconds: float = 30.0  # a priority passed over for so long rises by one
    train_tokens: int = 4096  # the largest micro-batch that background work may hold

    def __post_init__(self) -> None:
        if self.protect != "goals" and not (isinstance(self.protect, (int, float)) and self.protect >= 1):
            raise InvalidRequest(
                f"protect is {self.protect!r}; it must be a factor of at least 1 (say 1.10), or 'goals'.",
                param="protect",
            )
        at_least = {"max_num_seqs": 1, "max_batch_tokens": 0, "max_waiting": 1, "train_tokens": 1, "itl_goal": 0}
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}; it must be at least {least}.", param=name)
        if not self.aging_seconds > 0:
            raise InvalidRequest(f"aging_seconds is {self.aging_seconds!r}; it must be above 0.", param="aging_seconds")

    def on(self, device_type: str) -> EngineConfig:
        """With what suits a "cpu" or a GPU ("cuda"), where nothing was said."""
        tokens, itl = (256, 0.1) if device_type == "cpu" else (8192, 0.05)
        return replace(self, max_batch_tokens=self.max_batch_tokens or tokens, itl_goal=self.itl_goal or itl)
