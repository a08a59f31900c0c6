"""What the ledger's tests share: entries, a database that can go away, a bill read back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.service.database import Database, sqlite_url
from coserve.service.ledger import Entry, Ledger, Rates
from coserve.service.tables import UsageRow

RATES = Rates(Decimal("0.15"), Decimal("0.075"), Decimal("0.60"), Decimal("3"))
THEN = 1_800_000_000  # seconds since 1970


def entry(id: str = "chatcmpl-1", **values: Any) -> Entry:
    usual = {
        "created_at": THEN,
        "endpoint": "chat",
        "project_id": "proj-a",
        "key_id": "key-a",
        "tier": "standard",
        "model": "base",
        "prompt_tokens": 100,
    }
    return Entry(id=id, **{**usual, **values})


class Flaky(Database):
    """A database that is away while `away` is set."""

    away = False

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        if self.away:
            raise OperationalError("insert", {}, ConnectionRefusedError("nobody there"))
        async with super().write() as session:
            yield session


@asynccontextmanager
async def opened(home: Path, **options: Any) -> AsyncIterator[tuple[Flaky, Ledger]]:
    """A database and a ledger of one home, closed in order at the end."""
    database = Flaky(sqlite_url(new_database(home)))
    ledger = Ledger(database, home / "ledger", clock=lambda: THEN, **options)
    await ledger.open()
    try:
        yield database, ledger
    finally:
        await ledger.close()
        await database.close()


@cache
def _template() -> bytes:
    """An empty database, migrated once."""

    async def make(path: Path) -> None:
        database = Database(sqlite_url(path))
        await database.open()
        await database.close()

    with TemporaryDirectory() as folder:
        with ThreadPoolExecutor(1) as outside:  # of the loop that runs here
            outside.submit(asyncio.run, make(Path(folder) / "db")).result()
        return (Path(folder) / "db").read_bytes()


def new_database(home: Path) -> Path:
    """The home's database, made if it is not there."""
    path = home / "db"
    if not path.exists():
        path.write_bytes(_template())
    return path


async def bill(database: Database) -> dict[str, UsageRow]:
    async with database.read() as session:
        return {row.id: row for row in await session.scalars(select(UsageRow))}
