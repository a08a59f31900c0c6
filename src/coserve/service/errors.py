"""The one place where an exception becomes a reply: OpenAI's error envelope, all four keys always."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coserve.errors import (
    AuthenticationError,
    Conflict,
    CoserveError,
    InvalidRequest,
    NotFound,
    OutOfMemory,
    Unavailable,
)

log = logging.getLogger("coserve.service")


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"

    def __init__(self, where: str, allowed: str):
        super().__init__(f"{where} is not possible here; allowed: {allowed}.")
        self.headers = {"allow": allowed}


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class ClientGone(Exception):
    """The client disconnected: nobody is there to read a reply."""


def envelope(error: CoserveError) -> dict[str, Any]:
    """The body of an error reply, and of an error event within a stream."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def as_coserve_error(error: Exception, scope: Scope | None = None) -> CoserveError:
    """Any exception as one of the family; an unexpected one is logged and becomes a 500 without internals."""
    if isinstance(error, CoserveError):
        return error
    if isinstance(error, HTTPException):
        return _from_router(error, scope or {})
    log_unexpected(error)
    return CoserveError("The server had an error while it processed your request.", code="internal_error")


def log_unexpected(error: BaseException) -> None:
    """Log where and what kind, but not the message: it may quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("unexpected %s\n%s", type(error).__name__, frames.rstrip())


def _from_router(error: HTTPException, scope: Scope) -> CoserveError:
    where = f"{scope.get('method', 'GET')} {scope.get('path', '/')}"
    if error.status_code == 404:
        return NotFound(f"There is no such route: {where}.", code="unknown_url")
    if error.status_code == 405:
        return MethodNotAllowed(where, (error.headers or {}).get("Allow", "another method"))
    return InvalidRequest(error.detail or "The request is not valid.")


def reply(error: CoserveError) -> JSONResponse:
    """The HTTP reply, with the headers that the official clients read."""
    headers = dict(getattr(error, "headers", {}))
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Unavailable) and not isinstance(error, OutOfMemory):
        headers.setdefault("retry-after", "1")
    if isinstance(error, (Conflict, OutOfMemory)):
        headers["x-should-retry"] = "false"  # openai-python would try again, in vain
    if isinstance(error, PayloadTooLarge):
        headers["connection"] = "close"  # the rest of the body stays unread
    return JSONResponse(envelope(error), status_code=error.status, headers=headers)


class Guard:
    """Outermost: whatever goes wrong below becomes a reply, and never reaches the server's loop."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientGone:
            pass
        except Exception as error:
            answer = reply(as_coserve_error(error, scope))
            if not started:  # else the connection ends early, which the client sees
                await answer(scope, receive, send)
