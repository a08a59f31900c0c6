"""A request on the bill, from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable

from coserve.service.ledger.entry import Entry, Rates
from coserve.service.ledger.meter import CACHED, DELIVERED, Slot, memory_slot


class Line:
    """Counts what the client was given. Whoever began it must close it, whatever happens; all on the loop's thread."""

    __slots__ = ("_at", "_on_close", "_slot", "_words", "closed", "entry", "rates")

    def __init__(self, entry: Entry, rates: Rates, slot: Slot, on_close: Callable[[Line, Entry, Slot], None]):
        self.entry = entry  # as it began; once it is closed, as it is billed
        self.rates = rates
        self.closed = False
        self._on_close = on_close
        self._use(slot)

    def _use(self, slot: Slot) -> None:
        self._slot = slot
        self._words = slot.words
        self._at = slot.at + DELIVERED

    def delivered(self, completion_tokens: int) -> None:
        """So many have reached the client so far, of all choices. Say it after they were sent: who is cut off in
        between is billed for less, never for more. Zero is an empty answer, which bills the prompt."""
        self._words[self._at] = completion_tokens

    def cached(self, tokens: int) -> None:
        """So many of the prompt's tokens came from the cache: said as soon as it is known, it holds after a kill."""
        self._words[self._at - DELIVERED + CACHED] = tokens

    def close(
        self,
        outcome: str,
        *,
        generated_tokens: int = 0,
        cached_tokens: int | None = None,
        ttft_ms: float | None = None,
        latency_ms: float = 0.0,
        prompt_tokens: int | None = None,
        upstream: str | None = None,
        upstream_cost: int = 0,
    ) -> None:
        """It is over. Only the first call counts; what is delivered later is not. Without `cached_tokens`, those
        that `cached` told; the rest is for `Entry.settled`."""
        if self.closed:
            return
        self.closed = True
        if cached_tokens is not None:
            self.cached(cached_tokens)
        slot = self._slot
        self.entry = self.entry.settled(
            self.rates,
            *slot.read(),
            outcome,
            generated_tokens=generated_tokens,
            ttft_ms=ttft_ms,
            latency_ms=latency_ms,
            prompt_tokens=prompt_tokens,
            upstream=upstream,
            upstream_cost=upstream_cost,
        )
        self._use(memory_slot())  # the slot will be another's
        self._on_close(self, self.entry, slot)
