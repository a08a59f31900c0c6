"""Opening a store for a test, and a clock that goes by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from coserve.service.limits import LimitStore, open_store

T = TypeVar("T")


class Clock:
    """Seconds, from a time at which floats are as coarse as on a machine that has run for months."""

    def __init__(self) -> None:
        self.now = 1e7

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[LimitStore]:
    store = open_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def with_store(url: str | None, promise: Callable[[LimitStore], Awaitable[T]]) -> T:
    async def run() -> T:
        async with opened(url) as store:
            return await promise(store)

    return asyncio.run(run())
