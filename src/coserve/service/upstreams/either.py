"""A reply of one kind, or of another where the first cannot be had."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Making = Callable[[], Awaitable[Response]]


class Either(Response):
    """`first`, unless one of `errors` is raised before anything was sent: then `second`."""

    def __init__(self, first: Making, second: Making, *errors: type[Exception]):
        self._first, self._second, self._errors = first, second, errors
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:  # replies send nothing before they have their first piece, and raise nothing after it
            return await (await self._first())(scope, receive, send)
        except self._errors:
            pass
        await (await self._second())(scope, receive, send)
