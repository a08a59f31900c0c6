"""Tasks beside a request or a service: ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.types import Receive


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task; it has ended when this returns."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


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
