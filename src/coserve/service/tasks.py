"""Tasks beside a request or a service: ended with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.types import Receive


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task; it has ended when this returns."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def repeat(seconds: float, act: Callable[[], Awaitable[None]], log: logging.Logger, complaint: str) -> None:
    """Act every so many seconds until cancelled. That it fails is told once, until it succeeds again."""
    failing = False
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except Exception as error:  # whatever it is: the next time may be better
            if not failing:
                log.warning("%s (%s)", complaint, type(error).__name__)
            failing = True
        else:
            failing = False


@contextmanager
def watching(receive: Receive, on_leave: Callable[[], None]) -> Iterator[None]:
    """Within the block `on_leave` is called when the client disconnects."""
    watcher = asyncio.create_task(_watch(receive, on_leave))
    try:
        yield
    finally:
        watcher.cancel()


async def _watch(receive: Receive, on_leave: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    on_leave()
