"""Administration without a server: the same routes, on the database itself. Who may read the files may do this."""

from __future__ import annotations

import asyncio
from functools import cached_property

import httpx
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve.errors import Conflict, InvalidRequest
from coserve.service.admin.routes import KEY_AND_PROJECT_ROUTES
from coserve.service.auth.audit import COMMAND_LINE
from coserve.service.auth.keys import SECRET_FILE, Key, NewKey, list_keys, make_key, read_secret
from coserve.service.auth.projects import Project
from coserve.service.auth.scopes import ADMIN
from coserve.service.database import Database, sqlite_url
from coserve.service.errors import Guard
from coserve.service.settings import DATABASE, Settings
from coserve.service.tables import DEFAULT_PROJECT, KeyRow
from coserve.service.tiers import Tiers, read_tiers, tiers_path


class LocalTransport(httpx.BaseTransport):
    """Answers a client's requests in this process. Nobody has to be let in.

    Raises `InvalidRequest` where a home that is only to be looked at is not there, `DatabaseError`.
    """

    def __init__(self, settings: Settings):
        self._desk = LocalDesk(settings)
        self._app = _app(self._desk)
        self._runner = asyncio.Runner()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._runner.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        creates = request.method == "POST" and request.url.path.endswith(("/projects", "/api_keys", "/admin_api_keys"))
        await self._desk.open(make=creates)
        reply = await httpx.ASGITransport(self._app).handle_async_request(request)
        content = await reply.aread()
        return httpx.Response(reply.status_code, headers=reply.headers, content=content)

    def close(self) -> None:
        self._runner.run(self._desk.close())
        self._runner.close()


class LocalDesk:
    """What the routes work with: the database, the tiers, and the secret of the home directory."""

    database: Database

    def __init__(self, settings: Settings):
        self.settings = settings
        self.keys = LocalKeys(settings)
        self._open = False

    @cached_property
    def tiers(self) -> Tiers:
        return Tiers(read_tiers(tiers_path(self.settings.tiers, self.settings.directory)))

    def reload(self) -> None:
        del self.tiers

    async def open(self, *, make: bool) -> None:
        if self._open:
            return
        home = self.settings.directory
        if make:
            self.settings.make_directories()
        elif self.settings.database_url is None and not (home / DATABASE).exists():
            raise InvalidRequest(f"There is no {DATABASE} in {home}.", param="home")
        self.database = Database(self.settings.database_url or sqlite_url(home / DATABASE))
        await self.database.open()
        self._open = True

    async def close(self) -> None:
        if self._open:
            await self.database.close()


class LocalKeys:
    """Makes keys with the home's secret; servers see by themselves that something has changed."""

    def __init__(self, settings: Settings):
        self._secret_file = settings.directory / SECRET_FILE

    async def make(self, database: Database, new: NewKey, actor: str) -> tuple[str, KeyRow]:
        """Raises `Conflict` where the secret is not that which the database's keys were made with."""
        if not self._secret_file.exists() and await list_keys(database):
            raise Conflict(
                f"{self._secret_file} is missing: a key would not be valid. Copy the file from a server's home, "
                "or start the server, which makes all old keys void."
            )
        secret, _ = read_secret(self._secret_file)
        return await make_key(database, secret, new, actor)

    async def refresh(self, database: Database) -> None:
        pass


class _AsCommandLine:
    """Middleware: every request comes from the command line."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["coserve.key"] = Key(COMMAND_LINE, b"", Project(DEFAULT_PROJECT), scopes=frozenset({ADMIN}))
        await self.app(scope, receive, send)


def _app(desk: LocalDesk) -> Starlette:
    app = Starlette(routes=KEY_AND_PROJECT_ROUTES)
    app.middleware_stack = Guard(_AsCommandLine(app.router))
    app.state.service = desk
    return app
