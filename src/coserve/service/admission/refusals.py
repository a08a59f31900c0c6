"""Refusals for want of quota, with what the official clients read to know when, and whether, to try again."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coserve.errors import CoserveError

PATIENCE = 120.0
"""Seconds that the official clients wait at most; above, trying again by themselves is no use."""


class RateLimited(CoserveError):
    """A limit of requests or tokens is reached."""

    status = 429
    type = "tokens"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, type: str = "tokens", headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.type = type
        self.headers = dict(headers or {})


class TooLarge(RateLimited):
    """One request alone exceeds a limit: it can never be let in."""

    status = 413


class QuotaExceeded(RateLimited):
    """The budget is spent."""

    type = "insufficient_quota"
    code = "insufficient_quota"


def retry_headers(seconds: float) -> dict[str, str]:
    """When to try again, for openai-python and everybody else."""
    if not math.isfinite(seconds):
        return {"x-should-retry": "false"}
    headers = {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(1000 * seconds))}
    return headers if seconds <= PATIENCE else {**headers, "x-should-retry": "false"}


def spell(seconds: float) -> str:
    """A time as OpenAI's headers give it: 1s, 6m0s, 250ms."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
