"""A route to a function of a request, without the layers that Starlette puts around one: errors are `Guard`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette import routing
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Route(routing.Route):
    def __init__(
        self, path: str, answer: Callable[[Request], Awaitable[Response]], *, methods: Sequence[str] = ("GET",)
    ):
        super().__init__(path, answer, methods=methods)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await answer(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app
