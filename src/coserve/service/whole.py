"""A reply in one piece, made by a generator like a stream's: what follows its `yield` knows that the reply is out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coserve.service.sse import Headers


class WholeReply(Response):
    """Sends the one piece of JSON that `body(receive)` yields, then lets the generator end."""

    def __init__(self, body: Callable[[Receive], AsyncGenerator[bytes, None]], more_headers: Callable[[], Headers]):
        """`more_headers` is asked once the piece is there."""
        self.body_of = body
        self.more_headers = more_headers
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_of(receive)) as pieces:
            body = await anext(pieces)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *self.more_headers(),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            await anext(pieces, None)
