"""What can go wrong with an upstream, and what the client is told of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from coserve.errors import CoserveError, InvalidRequest, Unavailable
from coserve.service.admission.refusals import retry_headers, spell

Outcome = Literal["answered", "rejected", "connect", "timeout", "limited", "failed", "refused", "invalid", "abandoned"]
OUTCOMES: tuple[Outcome, ...] = (
    "answered",
    "rejected",  # the request was wrong, says the upstream
    "connect",  # no connection, or it broke
    "timeout",
    "limited",  # 429
    "failed",  # 5xx, or an error in mid-stream
    "refused",  # our key, our path or our bill: 401, 402, 403, 404, a redirect
    "invalid",  # no JSON, no events
    "abandoned",  # the client left
)
LONGEST_HOLD = 120.0
"""Seconds that an upstream's `retry-after` is believed."""


class Failure(Exception):
    """An attempt that failed: another upstream may do better, as long as the client has no token."""

    def __init__(self, outcome: Outcome, why: str, retry_after: float | None = None, *, said: str = ""):
        """`why` is for operators and for the client: no key, no address; `said`, the upstream's own words, may quote a
        prompt and is for the client alone. `retry_after`: seconds.
        """
        super().__init__(why)
        self.outcome = outcome
        self.why = why
        self.said = said
        self.retry_after = retry_after

    @property
    def told(self) -> str:
        """For the client."""
        return f"{self.why}: {self.said}" if self.said else self.why

    @property
    def ill(self) -> bool:
        """Whether the upstream is to blame; one that is at its limits is well."""
        return self.outcome != "limited"


class UpstreamFailed(CoserveError):
    """No upstream could answer."""

    status = 502
    code = "upstream_error"


class UpstreamsBusy(Unavailable):
    """Each upstream is at its limits, or is left alone for a while."""

    code = "upstreams_busy"

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.headers = retry_headers(seconds)


class Rejected(CoserveError):
    """The upstream says that the request is wrong: in its words, with its status."""

    type = "invalid_request_error"

    def __init__(self, status: int, message: str, param: str | None, code: str | None):
        super().__init__(message, param=param, code=code)
        self.status = status


def given_up(model: str, failures: Mapping[str, Failure], wait: float) -> CoserveError:
    """The error for a request that no upstream took. `wait`: seconds until one may."""
    ill = [f"{name}: {failure.told}" for name, failure in failures.items() if failure.ill]
    if ill:
        return UpstreamFailed(f"No upstream of the model {model!r} could answer ({'; '.join(ill)}).")
    seconds = max(wait, 0.1)
    when = f"Please try again in {spell(seconds)}." if math.isfinite(wait) else "This request is too large for them."
    return UpstreamsBusy(f"The upstreams of the model {model!r} do not take this request now. {when}", seconds)


def not_taken(model: str, field: str) -> InvalidRequest:
    """No upstream of the model takes a field that changes the meaning of the request."""
    return InvalidRequest(
        f"{field!r} is not supported for the model {model!r}.", param=field, code="unsupported_parameter"
    )
