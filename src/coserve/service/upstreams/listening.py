"""Waiting for an upstream for no longer than the client listens, and than is reasonable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from starlette.types import Receive

from coserve.service.errors import ClientGone
from coserve.service.hurry import hurry
from coserve.service.tasks import watching
from coserve.service.upstreams.failures import Failure

T = TypeVar("T")


class Listener:
    """The client, as long as it is there."""

    def __init__(self) -> None:
        self._gone = False
        self._waiting: asyncio.Timeout | None = None

    def check(self) -> None:
        """Raises `ClientGone` if the client has left: what was sent last did not reach it."""
        if self._gone:
            raise ClientGone

    def leave(self) -> None:
        """The client has left: whatever is waited for on its behalf ends with `ClientGone`."""
        self._gone = True
        hurry(self._waiting)

    async def within(self, seconds: float, what: str, wait: Callable[[], Awaitable[T]]) -> T:
        """What `wait` gives. Raises `ClientGone` when the client leaves, `Failure` after so many seconds."""
        self.check()
        try:
            async with asyncio.timeout(seconds) as self._waiting:
                return await wait()
        except TimeoutError:
            self.check()
            raise Failure("timeout", f"{what} took more than {seconds:.3g} s") from None
        finally:
            self._waiting = None

    async def sleep(self, seconds: float) -> None:
        """Raises `ClientGone` as soon as it is so."""
        with suppress(Failure):
            await self.within(seconds, "a pause", asyncio.Event().wait)


@contextmanager
def listening(receive: Receive) -> Iterator[Listener]:
    """Watches for the client's leaving for as long as the block lasts."""
    listener = Listener()
    with watching(receive, listener.leave):
        yield listener
