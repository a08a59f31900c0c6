"""A stream on its way from an upstream to the client: held back until its first token, then passed on as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from coserve.service.sse import DONE, event
from coserve.service.upstreams.config import Timeout
from coserve.service.upstreams.counting import Count
from coserve.service.upstreams.events import Events, has_content, has_finish, may_have_error, may_have_usage
from coserve.service.upstreams.failures import Failure
from coserve.service.upstreams.listening import Listener
from coserve.service.upstreams.naming import Naming

if TYPE_CHECKING:
    from coserve.service.upstreams.client import Reply

LINGER = 0.5
"""Seconds that an upstream may take to end a reply after its last event; else its connection is not used again."""


class Stream:
    """`begin` it, then pass its `pieces` on. Both raise `Failure` and `ClientGone`."""

    def __init__(self, reply: Reply, naming: Naming, count: Count, timeout: Timeout, *, wants_usage: bool):
        self._reply, self._naming, self._count, self._timeout = reply, naming, count, timeout
        self._wants_usage = wants_usage
        self._events = Events()
        self._held = b""
        self._begun = self._finished = self._done = self._usage_sent = False
        self._last = b""  # the last chunk with content
        self._failure: Failure | None = None

    async def begin(self, client: Listener, seconds: float) -> None:
        """Wait for the first token; after it nobody else can answer."""
        if not self._reply.is_events:
            raise Failure("invalid", "its reply is no stream")
        await client.within(seconds, "its first token", self._hold)

    async def _hold(self) -> None:
        while not self._begun:
            self._held += await self._next()

    async def pieces(self, client: Listener) -> AsyncIterator[bytes]:
        """Complete events, as many as have come. What is counted so far is in the pieces so far."""
        yield self._held
        while not self._done:
            piece = await client.within(self._timeout.idle, "the next piece of its stream", self._next)
            if piece:
                yield piece
        yield self._last_words() + DONE
        await self._drain()

    async def _next(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        piece = await self._reply.piece()
        if piece:
            return b"".join(self._passed_on(piece))
        if rest := self._events.rest():
            self._events = Events()
            return self._pass_on(rest)
        if not self._finished:
            raise Failure("connect", "its stream broke off")
        self._done = True
        return b""

    def _passed_on(self, piece: bytes) -> Iterator[bytes]:
        """A failure waits until what came before it has gone on."""
        try:
            for data in self._events.feed(piece):
                yield self._pass_on(data)
        except Failure as failure:
            self._failure = failure

    def _pass_on(self, data: bytes) -> bytes:
        """One event as the client gets it; nothing if it is not for the client."""
        if self._done:
            return b""
        if data == b"[DONE]":
            self._begun = self._done = True
            return b""
        if not data.startswith(b"{") or not data.endswith(b"}"):
            raise Failure("invalid", "its stream holds what is no JSON")
        if may_have_error(data):
            _check_error(_parsed(data))
        counted = False
        if may_have_usage(data):
            chunk = _parsed(data)
            counted = self._count.see_usage(chunk)
            if counted and not chunk.get("choices"):
                self._begun = True
                if not self._wants_usage:
                    return b""
                self._usage_sent = True
        if has_content(data):
            if not counted:
                self._count.see_piece()
            self._see_first(data)
            self._last = data
        if has_finish(data):
            self._finished = True
            self._see_first(data)
        return b"data: %s\n\n" % self._naming.chunk(data)

    def _see_first(self, data: bytes) -> None:
        if not self._begun:
            _parsed(data)  # an upstream that sends what is no JSON is found out while another can still answer
            self._begun = True

    def _last_words(self) -> bytes:
        """The usage, if the client asked for it and the upstream did not say it."""
        if not self._wants_usage or self._usage_sent or not self._last:
            return b""
        chunk = {**_parsed(self._naming.chunk(self._last)), "choices": [], "usage": self._count.as_usage()}
        return event(chunk)

    async def _drain(self) -> None:
        """Read on to the reply's end, so that its connection can be used again."""
        with suppress(TimeoutError, Failure):
            async with asyncio.timeout(LINGER):
                while not self._reply.at_end:
                    await self._reply.piece()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        chunk: dict[str, Any] = json.loads(data)
    except (ValueError, RecursionError):
        raise Failure("invalid", "its stream holds what is no JSON") from None
    return chunk


def _check_error(chunk: dict[str, Any]) -> None:
    """Raises `Failure` for an event with an error in it."""
    error = chunk.get("error")
    if error:
        message = error.get("message") if isinstance(error, dict) else error
        raise Failure("failed", "it ended its stream with an error", said=str(message)[:500])
