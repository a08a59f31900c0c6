"""Server-sent events as plain bytes: the hot path of every stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coserve.service.compact import dumps
from coserve.service.errors import ClientGone, as_coserve_error, envelope

Headers = list[tuple[bytes, bytes]]
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


class EventStream(Response):
    """Sends what `events(receive)` yields; each piece is one or more complete events.

    The status line waits for the first piece, so that an error before it is an ordinary error reply. A later
    error becomes an event with `error`, and the stream ends.
    """

    def __init__(
        self, events: Callable[[Receive], AsyncGenerator[bytes, None]], more_headers: Callable[[], Headers] = list
    ):
        """`more_headers` is asked once the first piece is there."""
        self.events = events
        self.more_headers = more_headers
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.events(receive)) as pieces:
            first = await anext(pieces, b"")
            headers = [*HEADERS, *self.more_headers()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except ClientGone:
                raise
            except Exception as error:
                failed = event(envelope(as_coserve_error(error))) + DONE
                await send({"type": "http.response.body", "body": failed, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
