"""One line of the bill, and how its price is found."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from decimal import Decimal

from coserve.service.compact import dumps
from coserve.service.money import cost
from coserve.service.tiers import Price

COMPLETED = "completed"
FAILED = "failed"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Rates:
    """USD a million tokens."""

    input: Decimal = Decimal(0)
    cached_input: Decimal = Decimal(0)
    output: Decimal = Decimal(0)
    trained: Decimal = Decimal(0)

    @classmethod
    def of(cls, price: Price, trained: Decimal = Decimal(0)) -> Rates:
        """A tier's prices."""
        cached = price.input if price.cached_input is None else price.cached_input
        return cls(price.input, cached, price.output, trained)

    def of_tokens(self, prompt: int, cached: int, completion: int, trained: int = 0) -> int:
        """Nano-dollars, `cached` of the prompt's tokens being cheaper: the one place where a price meets tokens."""
        amount = cost(prompt - cached, self.input) + cost(cached, self.cached_input)
        return amount + cost(completion, self.output) + cost(trained, self.trained)

    def as_texts(self) -> list[str]:
        return [str(rate) for rate in (self.input, self.cached_input, self.output, self.trained)]

    @classmethod
    def from_texts(cls, texts: list[str]) -> Rates:
        return cls(*(Decimal(text) for text in texts))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One request, or one fine-tuning job: a row of `usage`. Whatever comes twice under one id counts once."""

    id: str
    created_at: int  # seconds since 1970, when it began
    endpoint: str  # "chat", "completions", "fine_tuning", ...
    project_id: str
    key_id: str
    tier: str
    terms: str = "default"  # "default", "flex", "batch", ...
    model: str  # the base model
    adapter: str | None = None
    upstream: str | None = None  # None: this server's own chip
    batch_id: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt's
    completion_tokens: int = 0  # delivered
    generated_tokens: int = 0  # what the chip did, delivered or not
    trained_tokens: int = 0
    ttft_ms: float | None = None
    latency_ms: float = 0.0
    outcome: str = "completed"  # or "disconnected", "failed", "interrupted", "cancelled"
    cost: int = 0  # nano-dollars
    upstream_cost: int = 0  # what the upstream takes for it

    def billed(self, rates: Rates) -> Entry:
        """With the cost of its tokens."""
        return replace(
            self,
            cost=rates.of_tokens(self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.trained_tokens),
        )

    def settled(
        self,
        rates: Rates,
        delivered: int | None,
        cached_tokens: int,
        outcome: str,
        *,
        generated_tokens: int = 0,
        ttft_ms: float | None = None,
        latency_ms: float = 0.0,
        prompt_tokens: int | None = None,
        upstream: str | None = None,
        upstream_cost: int = 0,
    ) -> Entry:
        """As it stands when it is over. `delivered` completion tokens reached the client; None: nothing did, not
        even an empty answer, and then the prompt is not billed either. Of the prompt and the upstream holds what is
        given, else what was said before."""
        known = self.prompt_tokens if prompt_tokens is None else prompt_tokens
        prompt, completion = (0, 0) if delivered is None else (known, delivered)
        cached = min(cached_tokens, prompt)
        return replace(
            self,
            upstream=upstream or self.upstream,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            generated_tokens=max(generated_tokens, completion),
            ttft_ms=ttft_ms,
            latency_ms=latency_ms,
            outcome=outcome,
            cost=rates.of_tokens(prompt, cached, completion, self.trained_tokens),
            upstream_cost=upstream_cost,
        )

    def as_json(self) -> bytes:
        """One line, without its end."""
        return dumps(vars(self))

    @classmethod
    def from_json(cls, text: bytes) -> Entry:
        """Raises: `ValueError`, `TypeError` for what is no entry."""
        return cls(**json.loads(text))

    def as_row(self) -> dict[str, object]:
        """By column of `usage`."""
        return dict(vars(self))
