"""One request's way through: reserve what it may take, count what is delivered, settle what it took."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from coserve.errors import Unavailable
from coserve.service.admission.quota import Quota, rate_headers, refused, too_many_at_once
from coserve.service.admission.refusals import RateLimited
from coserve.service.admission.wish import Wish
from coserve.service.auth.keys import Key
from coserve.service.errors import ClientGone
from coserve.service.ids import new_id
from coserve.service.ledger import Entry, Rates
from coserve.service.ledger.entry import COMPLETED, FAILED
from coserve.service.limits import LEASE_SECONDS, Draw, Limit, Refusal
from coserve.service.money import cost
from coserve.service.tiers import Price, Terms

if TYPE_CHECKING:
    from coserve.service.admission.admission import Admission
    from coserve.service.ledger import Line


class Passage:
    """Use it as `async with passage:` around the work; `headers` are known from then on.

    `delivered` is to be called when tokens have been handed to the client's socket, `generated` when they are made.
    """

    def __init__(self, admission: Admission, key: Key, terms: Terms, wish: Wish, upstream: str | None):
        self.key, self.terms, self.wish = key, terms, wish
        self.headers: list[tuple[bytes, bytes]] = []
        self._admission = admission
        self._upstream = upstream
        self._upstream_price = Price()
        self._quota = Quota(key.project, terms)
        self._id = wish.usage_id or new_id("usage")
        self._prompt_tokens = wish.prompt_tokens
        self._cached_tokens = self._generated = 0
        self._ttft_ms: float | None = None
        self._reserved: list[Draw] = []
        self._leased: Limit | None = None
        self._line: Line | None = None

    @property
    def schedule(self) -> dict[str, Any]:
        """What the engine is told of its requests: fields of `engine.Request`."""
        goals = self.terms.goals
        return {
            "priority": self.terms.priority,
            "share": self.key.project.id,
            "weight": self.key.project.weight,
            "ttft_goal": goals.ttft,
            "itl_goal": goals.itl,
            "queue_seconds": None if self._quota.batch else goals.queue,
        }

    def max_tokens(self, prompt_tokens: int) -> int | None:
        """The most that a choice may generate: as asked, else what is left of the tier's context."""
        most = self.terms.goals.context
        if self.wish.max_tokens is not None or most is None:
            return self.wish.max_tokens
        if self._upstream is None:
            most = min(most, self._admission.context)
        return max(1, most - prompt_tokens)

    async def __aenter__(self) -> Passage:
        """Raises `RateLimited` and its kin when the limits do not allow it; then nothing is taken."""
        self._started = time.perf_counter()
        try:
            await self._lease()
            await self._reserve()
        except BaseException as error:
            await self._release()
            if isinstance(error, RateLimited):
                self._admission.metrics.refusals.labels(self.terms.tier, error.type).inc()
            raise
        self._line = self._admission.ledger.begin(self._entry(), Rates.of(self.terms.price))
        return self

    def generated(self, completion_tokens: int) -> None:
        """Completion tokens that were made so far, over all choices."""
        if self._ttft_ms is None and completion_tokens:
            self._ttft_ms = 1e3 * (time.perf_counter() - self._started)
            if not self._quota.batch:  # nobody waits for those
                self._admission.metrics.tier_ttft(self.terms.tier).observe(self._ttft_ms / 1e3)
        self._generated = completion_tokens

    def delivered(self, completion_tokens: int | None = None) -> None:
        """Completion tokens that the client was sent so far; all that were made unless said."""
        if self._line is not None:
            self._line.delivered(self._generated if completion_tokens is None else completion_tokens)

    def via(self, upstream: str, price: Price) -> None:
        """It is another upstream that is asked now, at what it takes from us."""
        self._upstream, self._upstream_price = upstream, price

    def told(self, prompt_tokens: int, cached_tokens: int) -> None:
        """What an upstream says of the prompt, whose tokens are counted there."""
        self._prompt_tokens, self._cached_tokens = prompt_tokens, cached_tokens

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._line is not None
        outcome = _outcome(kind)
        self._line.close(
            outcome,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated,
            ttft_ms=self._ttft_ms,
            latency_ms=1e3 * (time.perf_counter() - self._started),
            prompt_tokens=self._prompt_tokens,
            upstream=self._upstream,
            upstream_cost=self._upstream_cost(),
        )
        if kind is None:
            per_choice = self._generated / self.wish.choices
            self._admission.estimates.learn(self.key.project.id, self.wish.model, per_choice)
        used_nothing = outcome == FAILED and not self._generated
        tokens = 0 if used_nothing else self._prompt_tokens - self._cached_tokens + self._generated
        try:
            await self._settle(tokens, self._line.entry.cost)
        finally:
            await self._release()

    def _upstream_cost(self) -> int:
        """Nano-dollars for all that the upstream did, delivered or not; nothing where it gave no answer."""
        if not self._generated:
            return 0
        rates = Rates.of(self._upstream_price)
        return rates.of_tokens(self._prompt_tokens, self._cached_tokens, self._generated)

    async def _lease(self) -> None:
        limit = self._quota.concurrency
        if limit is None:
            return
        limits = self._admission.limits
        if not await limits.acquire(limit.key, int(limit.capacity), self._id, LEASE_SECONDS):
            raise too_many_at_once(limit, self.terms.tier)
        self._leased = limit

    async def _reserve(self) -> None:
        """The prompt and an estimate of the completion."""
        a, wish = self._admission, self.wish
        most = self.max_tokens(wish.longest_prompt) or a.context
        completion = wish.choices * a.estimates.completion(self.key.project.id, wish.model, most)
        price = cost(wish.prompt_tokens, self.terms.price.input) + cost(completion, self.terms.price.output)
        draws = self._quota.draws(wish.prompt_tokens + completion, price)
        if not draws:
            return
        await a.begin(self._quota, draws)
        answer = await a.limits.reserve(draws)
        if isinstance(answer, Refusal):
            raise refused(answer, self.terms.tier)
        self._reserved = draws
        self.headers = rate_headers(answer)

    async def _settle(self, tokens: int, billed: int) -> None:
        """Give back what was not used, or take what was used besides: work counts, delivered or not; a budget is for
        what is `billed` (nano-dollars).
        """
        used = self._quota.draws(tokens, billed)
        corrections = [
            Draw(draw.limit, now.amount - draw.amount)
            for draw, now in zip(self._reserved, used, strict=False)
            if now.amount != draw.amount
        ]
        with suppress(Unavailable):  # what was reserved stays taken: the bucket refills by itself
            if corrections:
                await self._admission.limits.settle(corrections)

    async def _release(self) -> None:
        limit, self._leased = self._leased, None
        if limit is not None:
            with suppress(Unavailable):  # the lease ends by itself
                await self._admission.limits.release(limit.key, self._id)

    def _entry(self) -> Entry:
        adapter = self._upstream is None and self.wish.model != self._admission.base_model
        return Entry(
            id=self._id,
            created_at=int(time.time()),
            endpoint=self.wish.endpoint,
            project_id=self.key.project.id,
            key_id=self.key.id,
            tier=self.terms.tier,
            terms=self.terms.named,
            model=self._admission.base_model if adapter else self.wish.model,
            adapter=self.wish.model if adapter else None,
            upstream=self._upstream,
            batch_id=self.wish.batch_id,
            prompt_tokens=self._prompt_tokens,
        )


def _outcome(kind: type[BaseException] | None) -> str:
    if kind is None:
        return COMPLETED
    # a generator that is closed early, a task that is cancelled: nobody listens any more
    gone = issubclass(kind, ClientGone | GeneratorExit) or not issubclass(kind, Exception)
    return "disconnected" if gone else FAILED
