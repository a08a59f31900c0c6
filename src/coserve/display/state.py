"""What is shown, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """How the chip's time was divided lately: fractions that add up to 1, or all 0 at the very start."""

    inference: float = 0.0
    training: float = 0.0
    idle: float = 0.0

    @classmethod
    def of(cls, inference: float, training: float, idle: float) -> Shares:
        """From seconds (or any other amounts)."""
        total = inference + training + idle
        return cls(inference / total, training / total, idle / total) if total > 0 else cls()


@dataclass(frozen=True)
class JobState:
    """A fine-tuning job as its object and its events describe it."""

    id: str
    status: str  # validating_files, queued, running, paused, succeeded, failed, cancelled
    model: str = ""
    fine_tuned_model: str | None = None
    step: int = 0
    total_steps: int = 0
    losses: tuple[float, ...] = ()  # training loss, oldest first
    valid_loss: float | None = None
    trained_tokens: int = 0
    message: str = ""  # the last event's, or what went wrong

    @property
    def over(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        if self.status == "succeeded":
            return 1.0
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0


@dataclass(frozen=True)
class Comparison:
    """The same question, answered by the base model and by the adapter."""

    question: str
    base: str
    base_answer: str
    adapter: str
    adapter_answer: str


@dataclass(frozen=True)
class State:
    """One moment of a server. Times in seconds, rates in tokens per second; None: not measured yet."""

    url: str = ""
    model: str = ""
    uptime: float = 0.0
    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    output_tokens: int = 0
    output_rate: float = 0.0
    training_rate: float = 0.0
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    itl_p50: float | None = None
    itl_p99: float | None = None
    shares: Shares = Shares()
    mbu: float | None = None  # fraction of the measured bandwidth
    predicted_step: float | None = None
    measured_step: float | None = None
    step_error: float | None = None  # median of |predicted / measured - 1|
    kv_used: int = 0
    kv_total: int = 0
    chip: str = ""
    job: JobState | None = None
    notes: tuple[str, ...] = ()  # shown below, newest last
    comparison: Comparison | None = None  # shown instead of the notes
