"""How much an upstream takes from us: its own limits, kept in the same store as those of the projects."""

from __future__ import annotations

import math
from contextlib import suppress

from coserve.errors import Unavailable
from coserve.service.ids import new_id
from coserve.service.limits import LEASE_SECONDS, Draw, Limit, LimitStore, Refusal
from coserve.service.upstreams.config import UpstreamConfig
from coserve.service.upstreams.failures import Failure

MINUTE = 60.0


class Room:
    """Takes nothing, and costs nothing, where the configuration sets no limits."""

    def __init__(self, name: str, config: UpstreamConfig, store: LimitStore):
        self._store = store
        self._requests = _limit(name, "requests_per_minute", config.requests_per_minute, MINUTE)
        self._tokens = _limit(name, "tokens_per_minute", config.tokens_per_minute, MINUTE)
        self._concurrent = _limit(name, "concurrent_requests", config.concurrent_requests, math.inf)

    async def take(self, tokens: int) -> Place:
        """Room for a request of so many tokens, estimated. Raises `Failure` when there is none, `Unavailable`."""
        place = Place(self._store, self._concurrent, self._tokens, tokens)
        if self._concurrent is not None:
            capacity = int(self._concurrent.capacity)
            if not await self._store.acquire(self._concurrent.key, capacity, place.id, LEASE_SECONDS):
                raise Failure("limited", "it has as many of our requests as it may")
        draws = [Draw(limit, n) for limit, n in ((self._requests, 1), (self._tokens, tokens)) if limit is not None]
        try:
            answer = await self._store.reserve(draws) if draws else []
        except BaseException:
            await place.free()
            raise
        if isinstance(answer, Refusal):
            await place.free()
            raise Failure("limited", f"its limit of {_words(answer.draw.limit)} is reached", answer.retry_after)
        return place


class Place:
    """What one request holds. `settle` when its tokens are known, `free` when it is over."""

    def __init__(self, store: LimitStore, concurrent: Limit | None, tokens: Limit | None, reserved: int):
        self.id = new_id("place") if concurrent is not None else ""
        self._store, self._concurrent, self._tokens, self._reserved = store, concurrent, tokens, reserved

    async def settle(self, tokens: int) -> None:
        if self._tokens is not None and tokens != self._reserved:
            with suppress(Unavailable):  # what was reserved stays taken: the bucket refills by itself
                await self._store.settle([Draw(self._tokens, tokens - self._reserved)])

    async def free(self) -> None:
        if self._concurrent is not None:
            with suppress(Unavailable):  # the lease ends by itself
                await self._store.release(self._concurrent.key, self.id)


def _limit(upstream: str, name: str, capacity: int | None, period: float) -> Limit | None:
    return None if capacity is None else Limit(f"upstream/{upstream}/{name}", capacity, period)


def _words(limit: Limit) -> str:
    return limit.key.rpartition("/")[2].replace("_", " ")
