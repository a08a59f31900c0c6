"""A request that another server answers: admitted here, tried there, passed back, and billed like any other."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive

from coserve.service.admission import Passage
from coserve.service.compact import dumps
from coserve.service.sse import EventStream
from coserve.service.upstreams.asking import Asking
from coserve.service.upstreams.attempts import Attempts
from coserve.service.upstreams.counting import BYTES_A_TOKEN, Count
from coserve.service.upstreams.failures import Failure, Rejected, UpstreamFailed
from coserve.service.upstreams.listening import Listener, listening
from coserve.service.upstreams.naming import Naming
from coserve.service.upstreams.stream import Stream
from coserve.service.upstreams.upstream import Upstream
from coserve.service.whole import WholeReply

if TYPE_CHECKING:
    from coserve.service.upstreams.client import Reply

LARGEST_ERROR = 64 << 10
"""Bytes of an error's body."""


class Relay:
    """One request on its way. `tokens`: of prompt and completion, estimated."""

    def __init__(self, asking: Asking, passage: Passage, attempts: Attempts, tokens: int):
        self._asking, self._passage, self._attempts, self._tokens = asking, passage, attempts, tokens
        self._naming = Naming(asking.model, passage.terms.named, chat=asking.endpoint == "chat")
        self._count = Count(asking.prompt_tokens)
        self._most = passage.max_tokens(max(asking.prompts))

    def response(self) -> Response:
        if self._asking.stream:
            return EventStream(self._events, lambda: self._passage.headers)
        return WholeReply(self.whole, lambda: self._passage.headers)

    async def whole(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        """Yields one JSON object."""
        with listening(receive) as client:
            first = self._attempts.first(client, lambda upstream: self._ask_for_whole(client, upstream))
            async with self._passage, first as reply:
                self._tell()
                yield dumps(self._naming.whole(reply))
                self._passage.delivered()

    async def _events(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        try:
            with listening(receive) as client:
                first = self._attempts.first(client, lambda upstream: self._ask_for_stream(client, upstream))
                async with self._passage, first as stream:
                    async for piece in stream.pieces(client):
                        self._tell()
                        yield piece
                        self._passage.delivered()
                        client.check()
        except Failure as failure:  # in mid-stream: the client has a part of the answer
            raise UpstreamFailed(f"The upstream of the model {self._asking.model!r} failed: {failure.told}.") from None

    def _tell(self) -> None:
        """What is known so far, before it is sent."""
        self._passage.told(self._count.prompt, self._count.cached)
        self._passage.generated(self._count.completion)

    @asynccontextmanager
    async def _ask_for_whole(self, client: Listener, upstream: Upstream) -> AsyncIterator[dict[str, Any]]:
        started = time.monotonic()
        async with self._asked(upstream):
            whole = partial(self._whole_answer, upstream)
            answer = await client.within(upstream.config.timeout.whole, "its reply", whole)
            upstream.latencies.learn(self._asking.model, False, time.monotonic() - started)
            if not self._count.see_usage(answer):
                self._count.completion = _estimate(answer)
            yield answer

    @asynccontextmanager
    async def _ask_for_stream(self, client: Listener, upstream: Upstream) -> AsyncIterator[Stream]:
        timeout, started = upstream.config.timeout, time.monotonic()
        async with self._asked(upstream):
            reply = await client.within(timeout.first_token, "its first token", partial(self._send, upstream))
            with closing(reply):
                stream = Stream(reply, self._naming, self._count, timeout, wants_usage=self._asking.wants_usage)
                await stream.begin(client, max(0.0, started + timeout.first_token - time.monotonic()))
                upstream.latencies.learn(self._asking.model, True, time.monotonic() - started)
                yield stream

    @asynccontextmanager
    async def _asked(self, upstream: Upstream) -> AsyncIterator[None]:
        """Around one attempt; at its end the upstream's room is known by what it did."""
        self._count.reset()
        async with upstream.asked(self._tokens) as place:
            self._passage.via(upstream.name, upstream.config.price_of(self._asking.model))
            try:
                yield
            finally:
                await place.settle(self._count.prompt + self._count.completion if self._count.completion else 0)

    async def _whole_answer(self, upstream: Upstream) -> dict[str, Any]:
        with closing(await self._send(upstream)) as reply:
            return _answer(await reply.read())

    async def _send(self, upstream: Upstream) -> Reply:
        """A reply that is an answer. Raises `Failure` and `Rejected`."""
        reply = await upstream.client.send(self._asking.path, self._asking.body_for(upstream.config, self._most))
        try:
            await _check(reply, upstream, self._asking.model)
        except BaseException:
            reply.close()
            raise
        return reply


async def _check(reply: Reply, upstream: Upstream, model: str) -> None:
    """Raises `Failure` if another upstream may do better, `Rejected` if the request is wrong, says this one."""
    if failure := reply.failure():
        raise failure
    if reply.status < 400:
        return
    try:
        said = json.loads(await reply.read(LARGEST_ERROR))
    except (ValueError, RecursionError):
        said = None
    raise _rejected(reply.status, said, upstream, model)


def _rejected(status: int, said: Any, upstream: Upstream, model: str) -> Rejected:
    error = said.get("error", said) if isinstance(said, dict) else None
    fields = error if isinstance(error, dict) else {"message": error}
    message, param, code = (fields.get(name) for name in ("message", "param", "code"))
    text = message if isinstance(message, str) else "The upstream says that the request is not valid."
    text = upstream.client.without_key(text).replace(upstream.config.name_of(model), model)
    return Rejected(status, text, param if isinstance(param, str) else None, code if isinstance(code, str) else None)


def _answer(text: bytes) -> dict[str, Any]:
    """Raises `Failure` for what is no completion."""
    try:
        answer = json.loads(text)
        if isinstance(answer, dict) and isinstance(answer["choices"], list):
            return answer
    except (ValueError, KeyError, RecursionError):
        pass
    raise Failure("invalid", "its reply is no completion")


def _estimate(answer: dict[str, Any]) -> int:
    """Completion tokens of a reply without usage."""
    return max(1, len(dumps(answer["choices"])) // BYTES_A_TOKEN)
