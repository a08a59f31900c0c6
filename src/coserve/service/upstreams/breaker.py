"""A circuit breaker: an upstream that fails is left alone for a while, then asked with one request at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from coserve.service.upstreams.config import Breaking

State = Literal["closed", "open", "half_open"]
Ticket = int


class Breaker:
    """Whoever sends a request takes a ticket before, and hands it in with what became of the request.

    A ticket holds until the breaker opens or closes: what was sent before that says nothing new. `clock` gives
    seconds.
    """

    def __init__(self, rules: Breaking, clock: Callable[[], float] = time.monotonic):
        self._rules = rules
        self._clock = clock
        self._pause = rules.pause
        self._opened_at: float | None = None
        self._probing = False
        self._era = 0
        self._forget()

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if self.seconds_left > 0 else "half_open"

    @property
    def seconds_left(self) -> float:
        """Until a probe may go; 0 if it may go now."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._pause - self._clock())

    @property
    def ready(self) -> bool:
        """Whether there are tickets; when half open there is one at a time."""
        return self._opened_at is None or (not self._probing and self.seconds_left == 0)

    def ticket(self) -> Ticket | None:
        if not self.ready:
            return None
        if self._opened_at is not None:
            self._probing = True
            self._era += 1
        return self._era

    def succeeded(self, ticket: Ticket) -> None:
        if ticket != self._era:
            return
        if self._opened_at is not None:
            self._close()
        else:
            self._in_a_row = 0
            self._count(failed=False)

    def failed(self, ticket: Ticket) -> None:
        if ticket != self._era:
            return
        if self._opened_at is not None:
            self._pause = min(2 * self._pause, self._rules.longest_pause)
            self.open()
            return
        self._in_a_row += 1
        self._count(failed=True)
        if self._in_a_row >= self._rules.failures or self._share_is_reached():
            self.open()

    def abandoned(self, ticket: Ticket) -> None:
        """The request ended without telling anything of the upstream."""
        if ticket == self._era:
            self._probing = False

    def open(self) -> None:
        self._opened_at, self._probing = self._clock(), False
        self._era += 1

    def probe_now(self) -> None:
        """There is a sign of life: the pause need not be sat out."""
        if self._opened_at is not None:
            self._opened_at = min(self._opened_at, self._clock() - self._pause)

    def _close(self) -> None:
        self._opened_at, self._probing, self._pause = None, False, self._rules.pause
        self._era += 1
        self._forget()

    def _forget(self) -> None:
        self._in_a_row = self._requests = self._failures = 0
        self._window_began = self._clock()

    def _count(self, *, failed: bool) -> None:
        if self._clock() >= self._window_began + self._rules.window:
            self._window_began, self._requests, self._failures = self._clock(), 0, 0
        self._requests += 1
        self._failures += failed

    def _share_is_reached(self) -> bool:
        return self._requests >= self._rules.requests and self._failures >= self._rules.share * self._requests
