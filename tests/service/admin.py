"""Keys for tests of the administration: made in the database, as the command line makes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai

from coserve.service import Server
from coserve.service.auth.keys import NewKey, make_key, read_secret
from coserve.service.database import Database, sqlite_url


def new_key(home: Path, *, database_url: str | None = None, **fields: object) -> tuple[str, str]:
    """The key and its id. A server that runs sees it within half a second."""

    async def make() -> tuple[str, str]:
        database = Database(database_url or sqlite_url(home / "coserve.db"))
        secret, _ = read_secret(home / "secret.key")
        key, row = await make_key(database, secret, NewKey(**{"name": "made by a test", **fields}))
        await database.close()
        return key, row.id

    return asyncio.run(make())


def http_client(server: Server, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False)


def admin_client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", admin_api_key=key, max_retries=0, timeout=20)


def soon(holds: Callable[[], bool], patience: float = 20.0) -> bool:
    until = time.monotonic() + patience
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
