"""The engine's vocabulary towards its callers: what is asked for and what comes back."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from coserve.errors import CoserveError, InvalidRequest

MOST_LOGPROBS = 20  # alternatives to a token


def _check(ok: bool, param: str, value: object, wanted: str) -> None:
    if not ok:
        raise InvalidRequest(f"{param} is {value!r}; it must be {wanted}.", param=param)


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, in OpenAI's and vLLM's words.

    Raises `InvalidRequest` with `param` for a value out of its range.
    """

    max_tokens: int | None = None  # None: up to the end of the context
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # alternatives to report; 0 = the chosen token's only; None = off

    def __post_init__(self) -> None:
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(0 <= self.temperature <= 2, "temperature", self.temperature, "between 0 and 2")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.top_k >= -1, "top_k", self.top_k, "0 (off) or a positive number")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "between -2 and 2")
        penalty = self.repetition_penalty
        _check(penalty > 0 and math.isfinite(penalty), "repetition_penalty", penalty, "a number above 0")
        _check(len(self.stop) <= 16 and all(self.stop), "stop", self.stop, "at most 16 strings, none empty")
        told = self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS
        _check(told, "logprobs", self.logprobs, f"between 0 and {MOST_LOGPROBS}")
        for token, bias in self.logit_bias.items():
            _check(-100 <= bias <= 100, "logit_bias", {token: bias}, "between -100 and 100 for each token")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def shapes_logits(self) -> bool:
        """Whether penalties or biases change them before a token is chosen."""
        penalized = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        return bool(self.logit_bias or penalized)


@dataclass(frozen=True)
class Request:
    """A prompt to continue with a model: the base model's name or an adapter's.

    Higher priorities go first; those of one priority share the chip by their weights, whoever asks for more.

    Raises `InvalidRequest` with `param` for a value out of its range.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    model: str
    id: str = field(default_factory=lambda: f"req-{uuid.uuid4().hex}")
    priority: int = 0
    share: str = ""  # on whose account it runs
    weight: float = 1.0  # of the share, among those of its priority
    ttft_goal: float | None = None  # seconds; None: the engine's
    itl_goal: float | None = None  # seconds; None: the engine's
    queue_seconds: float | None = None  # not admitted until then, it ends with `Unavailable`; None: it waits

    def __post_init__(self) -> None:
        _check(self.weight > 0 and math.isfinite(self.weight), "weight", self.weight, "a number above 0")
        for name in ("ttft_goal", "itl_goal", "queue_seconds"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "a number of seconds above 0")


@dataclass(frozen=True)
class TokenLogprob:
    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (token id, text, logprob), best first


@dataclass(frozen=True)
class Output:
    """One event in the life of a request: usually one token.

    `finish_reason` is None while it goes on; then "stop", "length", "cancelled" or "error". The last event of a request
    is the one with a finish reason; nothing follows it.
    """

    request_id: str
    token_id: int | None
    text: str  # what became final with this token; may be empty
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int  # so far
    logprob: TokenLogprob | None = None
    error: CoserveError | None = None
