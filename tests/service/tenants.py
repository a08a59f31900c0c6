"""Projects and keys made before a server starts, as `coserve projects` and `coserve keys` make them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from coserve.service.auth.keys import NewKey, make_key, read_secret
from coserve.service.auth.projects import NewProject, make_project
from coserve.service.database import Database, sqlite_url


def make_tenants(
    home: Path, projects: Sequence[NewProject], *, database_url: str | None = None, **key: object
) -> list[tuple[str, str]]:
    """For each project its id and a key of it; `key` has fields of `NewKey`."""

    async def make() -> list[tuple[str, str]]:
        home.mkdir(parents=True, exist_ok=True)
        database = Database(database_url or sqlite_url(home / "coserve.db"))
        await database.open()
        secret, _ = read_secret(home / "secret.key")
        made = []
        for new in projects:
            project = await make_project(database, new)
            value, _ = await make_key(database, secret, NewKey("test", project=project.id, **key))  # type: ignore[arg-type]
            made.append((project.id, value))
        await database.close()
        return made

    return asyncio.run(make())
