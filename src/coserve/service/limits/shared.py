"""What the stores that several processes share have in common: a bound on waiting, cancellation, one error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, TypeVar

from coserve.errors import Unavailable
from coserve.service.limits.bucket import Draw, Level, Limit, Refusal, level, merge, refusal

PATIENCE = 2.0  # seconds that a call waits for the server
How = Literal["reserve", "settle", "preset"]  # all or nothing; whatever the level; only from full buckets
T = TypeVar("T")


class Backend(Protocol):
    """A server that keeps buckets and leases. Its arithmetic is that of `bucket.py`, done there, by its clock."""

    name: str  # for messages: no password
    errors: tuple[type[Exception], ...]  # what it raises if the server is away

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def draw(self, how: How, draws: Sequence[Draw]) -> tuple[bool, list[float]]:
        """Whether the amounts were taken, and what is now used of each. One draw for each key, sorted by keys."""

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        """A lease that is held already is made longer, whatever the capacity."""

    async def release(self, key: str, lease: str) -> None: ...


class SharedStore:
    """A `LimitStore` on a server.

    A call that has begun is never broken off by its caller's cancellation, since nobody could tell whether it had
    an effect: it ends in the background, and what it took is given back.
    """

    def __init__(self, backend: Backend):
        self._backend = backend
        self._running: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        try:
            await self._ask(self._backend.open())
        except Unavailable:
            await self.close()
            raise

    async def close(self) -> None:
        while self._running:
            await asyncio.wait(self._running)
        with suppress(Unavailable):
            await self._ask(self._backend.close())

    async def reserve(self, draws: Sequence[Draw]) -> list[Level] | Refusal:
        merged = merge(draws)

        async def undo(answer: tuple[bool, list[float]]) -> None:
            if answer[0]:
                await self._ask(self._backend.draw("settle", [Draw(draw.limit, -draw.amount) for draw in merged]))

        granted, used = await self._ask(self._backend.draw("reserve", merged), undo)
        return _levels(draws, merged, used) if granted else refusal(merged, used)

    async def settle(self, corrections: Sequence[Draw]) -> list[Level]:
        merged = merge(corrections)
        _, used = await self._ask(self._backend.draw("settle", merged))
        return _levels(corrections, merged, used)

    async def levels(self, limits: Sequence[Limit]) -> list[Level]:
        return await self.settle([Draw(limit, 0) for limit in limits])

    async def preset(self, limit: Limit, used: float) -> None:
        await self._ask(self._backend.draw("preset", [Draw(limit, used)]))

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        async def undo(acquired: bool) -> None:
            if acquired:
                await self.release(key, lease)

        return await self._ask(self._backend.acquire(key, capacity, lease, seconds), undo)

    async def renew(self, key: str, lease: str, seconds: float) -> bool:
        return await self._ask(self._backend.acquire(key, 0, lease, seconds))

    async def release(self, key: str, lease: str) -> None:
        await self._ask(self._backend.release(key, lease))

    async def _ask(self, call: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
        """The call's result. Raises `Unavailable`. If the caller is cancelled, `undo` gets the result instead."""
        task = self._start(call)
        try:
            return await self._result(task)
        except asyncio.CancelledError:
            self._start(self._end(task, undo))
            raise

    async def _result(self, task: asyncio.Task[T]) -> T:
        await asyncio.wait({task}, timeout=PATIENCE)
        if not task.done():
            task.cancel()
            raise Unavailable(f"{self._backend.name}, which keeps the limits, gave no answer in {PATIENCE:g} s.")
        try:
            return task.result()
        except self._backend.errors as error:
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            raise Unavailable(f"{self._backend.name}, which keeps the limits, cannot be used: {reason}.") from error

    async def _end(self, task: asyncio.Task[T], undo: Callable[[T], Awaitable[None]] | None) -> None:
        with suppress(Unavailable):
            result = await self._result(task)
            if undo is not None:
                await undo(result)

    def _start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: those that nobody waits for any more need no line in the log


def _levels(draws: Sequence[Draw], merged: Sequence[Draw], used: Sequence[float]) -> list[Level]:
    levels = {draw.limit.key: level(draw.limit, amount) for draw, amount in zip(merged, used, strict=True)}
    return [levels[draw.limit.key] for draw in draws]
