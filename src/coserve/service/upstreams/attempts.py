"""Upstream after upstream, until one has begun to answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from random import Random
from typing import TypeVar

from coserve.service.upstreams.failures import Failure, given_up
from coserve.service.upstreams.listening import Listener
from coserve.service.upstreams.upstream import Upstream

T = TypeVar("T")
PATIENCE = 2.0
"""Seconds to wait for an upstream that said when to come back, or whose breaker is about to let one through."""
BACKOFF = 0.1
"""Seconds before a second round, at least; doubled before each one after it."""
AGAIN = frozenset({"connect", "failed", "invalid", "limited"})
"""After these an upstream may be asked once more. A timeout has cost enough, and a key does not become right."""


class TurnBack(Exception):
    """No upstream answered, and the next in line is this server's own engine."""


EARLY = 0.01
"""Seconds by which a timer of the loop may ring too early: an upstream asked then would still be left alone."""


class Attempts:
    """`upstreams` in the order in which to ask; `then_here`: after one round this server's own engine has its turn."""

    def __init__(
        self, model: str, upstreams: Sequence[Upstream], random: Random, *, rounds: int, then_here: bool = False
    ):
        self._model, self._upstreams, self._random = model, upstreams, random
        self._rounds = 1 if then_here else rounds
        self._then_here = then_here
        self._failures: dict[str, Failure] = {}  # each upstream's last

    @asynccontextmanager
    async def first(
        self, client: Listener, ask: Callable[[Upstream], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator[T]:
        """What the first `ask` that does not fail on entering gives. After that a failure is a failure.

        Raises `UpstreamFailed`, `UpstreamsBusy`, `TurnBack`, `ClientGone`, and what `ask` raises besides `Failure`.
        """
        upstreams = list(self._upstreams)
        for count in range(self._rounds):
            if count and not await self._pause(client, upstreams, BACKOFF * 2 ** (count - 1)):
                break
            for upstream in upstreams:
                async with AsyncExitStack() as stack:
                    try:
                        answer = await stack.enter_async_context(ask(upstream))
                    except Failure as failure:
                        self._failures[upstream.name] = failure
                        continue
                    yield answer
                    return
            upstreams = [upstream for upstream in upstreams if self._failures[upstream.name].outcome in AGAIN]
        if self._then_here:
            raise TurnBack
        wait = min(self._seconds_away(upstream) for upstream in self._upstreams)
        raise given_up(self._model, self._failures, wait)

    async def _pause(self, client: Listener, upstreams: Sequence[Upstream], backoff: float) -> bool:
        """Wait until one of them may be asked again; False if that is too long, or never."""
        wait = min((self._seconds_away(upstream) for upstream in upstreams), default=PATIENCE + 1)
        if wait > PATIENCE:
            return False
        await client.sleep(max(wait + EARLY, backoff * self._random.uniform(1, 2)))
        return True

    def _seconds_away(self, upstream: Upstream) -> float:
        """By what it last said, and by what is known of it."""
        return max(upstream.seconds_away, self._failures[upstream.name].retry_after or 0.0)
