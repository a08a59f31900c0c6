"""Limits in this process. Nothing here awaits, so each call is atomic on its loop."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coserve.service.limits.bucket import (
    Draw,
    Level,
    Limit,
    Refusal,
    fits,
    level,
    melted,
    merge,
    refusal,
    seconds_to_keep,
)

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was used at a time, and when it may be forgotten; in seconds of the store's clock."""

    used: float
    at: float
    until: float


class MemoryStore:
    """A `LimitStore` for a service of one process. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._leases: OrderedDict[str, dict[str, float]] = OrderedDict()  # key: lease: when it ends

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def reserve(self, draws: Sequence[Draw]) -> list[Level] | Refusal:
        merged = merge(draws)
        used = [self._used(draw.limit) for draw in merged]
        if not all(map(fits, merged, used)):
            return refusal(merged, used)
        return self._take(merged, draws)

    async def settle(self, corrections: Sequence[Draw]) -> list[Level]:
        return self._take(merge(corrections), corrections)

    async def levels(self, limits: Sequence[Limit]) -> list[Level]:
        return [level(limit, self._used(limit)) for limit in limits]

    async def preset(self, limit: Limit, used: float) -> None:
        if self._used(limit) == 0:
            self._keep(Draw(limit, used))

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        now = self._clock()
        held = {other: end for other, end in self._leases.get(key, {}).items() if end > now}
        if lease not in held and len(held) >= capacity:
            return False
        self._leases[key] = held | {lease: now + seconds}
        self._forget_some(self._leases, lambda held: max(held.values()) <= now, 2)
        return True

    async def renew(self, key: str, lease: str, seconds: float) -> bool:
        return await self.acquire(key, 0, lease, seconds)

    async def release(self, key: str, lease: str) -> None:
        held = self._leases.get(key, {})
        held.pop(lease, None)
        if not held:
            self._leases.pop(key, None)

    def _used(self, limit: Limit) -> float:
        bucket = self._buckets.get(limit.key)
        return melted(bucket.used, limit.rate, self._clock() - bucket.at) if bucket else 0.0

    def _take(self, merged: Sequence[Draw], draws: Sequence[Draw]) -> list[Level]:
        levels = {draw.limit.key: level(draw.limit, self._keep(draw)) for draw in merged}
        now = self._clock()
        self._forget_some(self._buckets, lambda bucket: bucket.until <= now, len(merged) + 1)
        return [levels[draw.limit.key] for draw in draws]

    def _keep(self, draw: Draw) -> float:
        """Add an amount to what is used of its limit, and return that."""
        limit, now = draw.limit, self._clock()
        used = max(0.0, self._used(limit) + draw.amount)
        if used == 0:
            self._buckets.pop(limit.key, None)
            return used
        self._buckets[limit.key] = Bucket(used, now, now + seconds_to_keep(limit.rate, used))
        return used

    @staticmethod
    def _forget_some(kept: OrderedDict[str, Kept], is_over: Callable[[Kept], bool], count: int) -> None:
        """Look at the next few and drop those that are over. Each call looks at more than it adds, so memory ends."""
        for _ in range(min(count, len(kept))):
            key = next(iter(kept))
            if is_over(kept[key]):
                del kept[key]
            else:
                kept.move_to_end(key)
