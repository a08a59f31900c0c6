"""One upstream, and what is known of it: whether it is well, how much it takes, how fast it was of late."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from coserve.service.limits import LimitStore
from coserve.service.upstreams.breaker import Breaker
from coserve.service.upstreams.config import UpstreamConfig
from coserve.service.upstreams.failures import Failure, Outcome, Rejected
from coserve.service.upstreams.latency import Latencies
from coserve.service.upstreams.metrics import UpstreamMetrics
from coserve.service.upstreams.room import Place, Room

if TYPE_CHECKING:
    from coserve.service.upstreams.client import Client

HOLD = 1.0
"""Seconds to leave an upstream alone after a 429 that does not say how long."""


class Upstream:
    """`clock` gives seconds."""

    def __init__(
        self,
        name: str,
        config: UpstreamConfig,
        client: Client,
        store: LimitStore,
        metrics: UpstreamMetrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.config, self.client = name, config, client
        self.breaker = Breaker(config.breaker, clock)
        self.latencies = Latencies()
        self.used = False
        self.running = 0
        self._room = Room(name, config, store)
        self._metrics = metrics
        self._clock = clock
        self._held_until = 0.0
        self._last_error: str | None = None

    @property
    def seconds_away(self) -> float:
        """Until it may be asked again: 0 if now."""
        return max(self._held_until - self._clock(), self.breaker.seconds_left, 0.0)

    @property
    def ready(self) -> bool:
        return self.breaker.ready and self.seconds_away == 0

    @asynccontextmanager
    async def asked(self, tokens: int) -> AsyncIterator[Place]:
        """Around one request to it, of so many tokens as estimated: takes its room, and learns from what happens.

        Raises `Failure` before anything is sent when it is not ready, or has no room.
        """
        ticket = self.breaker.ticket() if self._held_until <= self._clock() else None
        if ticket is None:
            raise Failure("limited", "it is left alone for a while", self.seconds_away)
        self.running += 1
        try:
            place = await self._room.take(tokens)
        except BaseException:
            self.running -= 1
            self.breaker.abandoned(ticket)
            raise
        self.used = True
        outcome: Outcome = "abandoned"
        try:
            yield place
            outcome = "answered"
        except Failure as failure:
            outcome, failure.said = failure.outcome, self.client.without_key(failure.said)
            self._learn(failure)
            raise
        except Rejected:
            outcome = "rejected"
            raise
        finally:
            self.running -= 1
            self._metrics.count(self.name, outcome)
            if outcome in ("answered", "rejected"):
                self.breaker.succeeded(ticket)
            elif outcome in ("abandoned", "limited"):
                self.breaker.abandoned(ticket)
            else:
                self.breaker.failed(ticket)
            await place.free()

    def not_alive(self, why: str) -> None:
        """A health check failed."""
        self._last_error = why
        self.breaker.open()

    def _learn(self, failure: Failure) -> None:
        self._last_error = failure.why
        if failure.outcome == "limited" or failure.retry_after is not None:
            self._held_until = self._clock() + (HOLD if failure.retry_after is None else failure.retry_after)

    def state(self) -> dict[str, Any]:
        """For operators: no key, no address."""
        return {
            "breaker": self.breaker.state,
            "seconds_away": round(self.seconds_away, 3),
            "running": self.running,
            "used": self.used,
            "requests": self._metrics.counts(self.name),
            "seconds": self.latencies.as_dict(),
            "last_error": self._last_error,
        }
