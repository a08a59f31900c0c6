"""The buckets that a request draws from: its project's limits at its tier, and the project's budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from coserve.service.admission.refusals import QuotaExceeded, RateLimited, TooLarge, retry_headers, spell
from coserve.service.auth.projects import Project
from coserve.service.limits import Draw, Level, Limit, Refusal
from coserve.service.money import usd
from coserve.service.tiers import BATCH, Limits, Terms

MINUTE, DAY = 60.0, 86400.0
BUDGET = "budget"


@dataclass(frozen=True)
class Window:
    name: str  # of the tier's limit
    unit: str  # "requests" or "tokens"
    seconds: float
    words: str


WINDOWS = (
    Window("requests_per_minute", "requests", MINUTE, "requests per minute (RPM)"),
    Window("requests_per_day", "requests", DAY, "requests per day (RPD)"),
    Window("tokens_per_minute", "tokens", MINUTE, "tokens per minute (TPM)"),
    Window("tokens_per_day", "tokens", DAY, "tokens per day (TPD)"),
)
BATCH_WINDOW = Window("batch_tokens_per_day", "tokens", DAY, "batch tokens per day")


@dataclass(frozen=True)
class Quota:
    """A project's limits at a tier. Keys of buckets are "project/tier/limit"."""

    project: Project
    terms: Terms

    @cached_property
    def limits(self) -> Limits:
        return self.terms.goals.overridden(self.project.limits)

    @property
    def concurrency(self) -> Limit | None:
        """How many requests at once; a batch's own number is the batch runner's affair."""
        number = None if self.batch else self.limits.concurrent_requests
        return None if number is None else Limit(self._key("concurrent_requests"), number, math.inf)

    @property
    def batch(self) -> bool:
        return self.terms.named == BATCH

    def draws(self, tokens: int, cost: int) -> list[Draw]:
        """What a request of so many tokens, prompt and completion, takes; `cost` in nano-dollars."""
        amount = {"requests": 1, "tokens": tokens}
        draws = [Draw(limit, amount[window.unit]) for window, limit in self._windows]
        if self.project.budget is not None:
            draws.append(Draw(self.budget(self.project.budget), cost))
        return draws

    def budget(self, nano_dollars: int) -> Limit:
        """The calendar month's: a new month is a new bucket."""
        month = datetime.now(UTC).strftime("%Y-%m")
        return Limit(f"{self.project.id}/{BUDGET}/{month}", nano_dollars, math.inf)

    @cached_property
    def _windows(self) -> list[tuple[Window, Limit]]:
        if self.batch:
            most = self.terms.goals.batch.tokens_per_day
            return [] if most is None else [(BATCH_WINDOW, Limit(self._key(BATCH_WINDOW.name), most, DAY))]
        limits = self.limits
        found = [(window, getattr(limits, window.name)) for window in WINDOWS]
        return [(w, Limit(self._key(w.name), most, w.seconds)) for w, most in found if most is not None]

    def _key(self, name: str) -> str:
        return f"{self.project.id}/{self.terms.tier}/{name}"


def month_began() -> int:
    """The first second of this calendar month, UTC."""
    return int(datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())


def refused(refusal: Refusal, tier: str) -> RateLimited:
    """The error for a refusal, in the words that users of such services know."""
    limit, amount = refusal.draw.limit, refusal.draw.amount
    if f"/{BUDGET}/" in limit.key:
        return QuotaExceeded(
            f"The project's budget of {usd(int(limit.capacity)):,.2f} USD for this month is spent: "
            f"{usd(int(max(0, refusal.remaining))):,.4f} USD are left. Raise it, or wait for the next month.",
            type=QuotaExceeded.type,
            headers=retry_headers(math.inf),
        )
    window = next(w for w in (*WINDOWS, BATCH_WINDOW) if limit.key.endswith(f"/{w.name}"))
    used = limit.capacity - refusal.remaining
    reached = f"Limit {limit.capacity:.0f}, Used {used:.0f}, Requested {amount:.0f}."
    if amount > limit.capacity:
        return TooLarge(
            f"This request is too large for the {window.words} of the tier {tier!r}: Limit {limit.capacity:.0f}, "
            f"Requested {amount:.0f}. Shorten it, or lower max_completion_tokens.",
            type=window.unit,
            headers=retry_headers(math.inf),
        )
    return RateLimited(
        f"Rate limit reached for {window.words} on the tier {tier!r}: {reached} "
        f"Please try again in {spell(refusal.retry_after)}.",
        type=window.unit,
        headers=retry_headers(refusal.retry_after),
    )


def too_many_at_once(limit: Limit, tier: str) -> RateLimited:
    return RateLimited(
        f"Rate limit reached for concurrent requests on the tier {tier!r}: Limit {limit.capacity:.0f}. "
        "Please try again when one of them has ended.",
        type="requests",
        headers=retry_headers(1.0),
    )


def rate_headers(levels: Sequence[Level]) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`: the minute's where there is one, else the day's."""
    by_name = {level.limit.key.rpartition("/")[2]: level for level in levels}
    headers = []
    for unit in ("requests", "tokens"):
        level = by_name.get(f"{unit}_per_minute") or by_name.get(f"{unit}_per_day")
        if level is not None:
            headers += [
                (b"x-ratelimit-limit-%s" % unit.encode(), b"%d" % level.limit.capacity),
                (b"x-ratelimit-remaining-%s" % unit.encode(), b"%d" % max(0, level.remaining)),
                (b"x-ratelimit-reset-%s" % unit.encode(), spell(level.reset).encode()),
            ]
    return headers
