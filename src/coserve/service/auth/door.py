"""The door: every request shows an API key that is valid for where it goes."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve.errors import AuthenticationError, CoserveError, InvalidRequest
from coserve.service.auth.keys import Key
from coserve.service.auth.oidc import is_token
from coserve.service.auth.scopes import check_scope
from coserve.service.errors import reply

OPEN_PATHS = frozenset({"/health", "/metrics"})


class Door:
    """Middleware: nobody passes without a valid key, except to what is open to all."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
                    raise InvalidRequest("The address holds a character that no id has: %00.")
                key = await identify(scope)
                check_scope(scope["path"], key.scopes)
                scope["app"].state.service.key_uses.note(key.id)
            except CoserveError as error:
                return await reply(error)(scope, receive, send)
            scope["coserve.key"] = key
        await self.app(scope, receive, send)


def key_of(http: HTTPConnection) -> Key:
    """The key that came through the door."""
    key: Key = http.scope["coserve.key"]
    return key


async def identify(scope: Scope) -> Key:
    """Raises `AuthenticationError`, which never repeats the key; for a token what `Oidc.identify` raises."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise AuthenticationError("An API key is needed, in the header 'Authorization: Bearer sk-cs-...'.")
    service = scope["app"].state.service
    found = service.keys.find(key.strip())
    if found is None and service.oidc is not None and is_token(key.strip()):
        found = await service.oidc.identify(key.strip())
    if found is None:
        raise AuthenticationError("This API key is not valid.")
    return found
