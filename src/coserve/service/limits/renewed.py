"""Leases that last as long as who holds them: short ones, renewed until they are released."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from coserve.errors import Unavailable
from coserve.service.limits.bucket import Draw, Level, Limit, Refusal
from coserve.service.limits.store import LimitStore
from coserve.service.tasks import cancel

log = logging.getLogger("coserve.service.limits")

LOOK_SECONDS = 1.0  # between two looks at what is due
DUE = 0.25  # of a lease's seconds: renewed that early, it outlasts some looks that find the store away
AT_ONCE = 16  # renewals under way
ANY = 2**31 - 1  # places


@dataclass
class Held:
    seconds: float
    since: float  # when it was renewed last


class RenewedStore:
    """A `LimitStore` that renews what was acquired through it, while its process lives: then `seconds` of a lease is
    how long it outlasts a kill, and no bound on the work.

    A lease that was lost all the same, with the server behind the store or while that was away, is taken again whatever
    the capacity: its work goes on, and counts.
    """

    def __init__(self, store: LimitStore, *, look: float = LOOK_SECONDS, clock: Callable[[], float] = time.monotonic):
        self._store, self._look, self._clock = store, look, clock
        self._held: dict[tuple[str, str], Held] = {}  # by key and lease
        self._renewing: asyncio.Task[None] | None = None
        self._away = False

    async def open(self) -> None:
        await self._store.open()
        self._renewing = asyncio.create_task(self._renew_for_ever())

    async def close(self) -> None:
        if self._renewing is not None:
            await cancel(self._renewing)
        await self._store.close()

    async def reserve(self, draws: Sequence[Draw]) -> list[Level] | Refusal:
        return await self._store.reserve(draws)

    async def settle(self, corrections: Sequence[Draw]) -> list[Level]:
        return await self._store.settle(corrections)

    async def levels(self, limits: Sequence[Limit]) -> list[Level]:
        return await self._store.levels(limits)

    async def preset(self, limit: Limit, used: float) -> None:
        await self._store.preset(limit, used)

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        asked = self._clock()
        acquired = await self._store.acquire(key, capacity, lease, seconds)
        if acquired:
            self._held[key, lease] = Held(seconds, asked)
        return acquired

    async def renew(self, key: str, lease: str, seconds: float) -> bool:
        return await self._store.renew(key, lease, seconds)

    async def release(self, key: str, lease: str) -> None:
        self._held.pop((key, lease), None)  # whatever comes of it: by itself it ends soon
        await self._store.release(key, lease)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._look)
            try:
                await self._renew_due()
            except Exception as error:  # the next look tries again
                if not self._away:
                    log.warning("places that requests hold cannot be renewed now (%s)", error)
                self._away = True
            else:
                self._away = False

    async def _renew_due(self) -> None:
        """Raises what the first that fails raises; those that were not renewed stay due."""
        now = self._clock()
        due = iter([place for place, held in self._held.items() if now - held.since >= DUE * held.seconds])

        async def some() -> None:
            for place in due:
                await self._renew_one(place)

        results = await asyncio.gather(*(some() for _ in range(AT_ONCE)), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _renew_one(self, place: tuple[str, str]) -> None:
        held = self._held.get(place)
        if held is None:
            return
        (key, lease), asked = place, self._clock()
        if await self._store.renew(key, lease, held.seconds):
            held.since = asked
        elif place in self._held and await self._store.acquire(key, ANY, lease, held.seconds):
            held.since = asked
            if place not in self._held:  # it was released meanwhile
                with suppress(Unavailable):
                    await self._store.release(key, lease)
