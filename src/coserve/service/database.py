"""The database: opened and brought up to date at start, read by many, written by one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from coserve.errors import CoserveError

SQLITE = "sqlite+aiosqlite"
MIGRATIONS = Path(__file__).parent / "migrations"


class DatabaseError(CoserveError):
    """The database cannot be used: says why and what to do."""

    code = "database_error"


def sqlite_url(path: Path) -> str:
    return f"{SQLITE}:///{path}"


class Database:
    """Sessions on one database.

    Raises `DatabaseError` for a URL that cannot be, and from `open` if the database cannot be opened or its schema is
    newer than this version's.
    """

    def __init__(self, url: str):
        self.url = _with_driver(url)
        try:
            self._engine = create_async_engine(self.url)
        except (ArgumentError, NoSuchModuleError):
            raise DatabaseError(
                "The database's URL must be like postgresql://user@host/name or sqlite:////file."
            ) from None
        except ImportError:
            raise DatabaseError("PostgreSQL needs asyncpg: pip install 'coserve[postgres]'.") from None
        self._writers = self._engine.execution_options(coserve_writes=True)
        self._one_writer = asyncio.Lock()
        if self._engine.dialect.name == "sqlite":
            _tame_sqlite(self._engine)

    async def open(self) -> None:
        try:
            async with self._writers.begin() as connection:
                await connection.run_sync(migrate)
        except (SQLAlchemyError, OSError, ImportError) as error:
            reason = getattr(error, "orig", None) or error
            await self.close()
            raise DatabaseError(f"The database cannot be opened: {reason}.") from error
        except DatabaseError:
            await self.close()
            raise

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction, committed at the end of the block. Writers of this process take turns."""
        async with (
            self._one_writer,
            AsyncSession(self._writers, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session


def _with_driver(url: str) -> str:
    """The URL with the driver that does not block the loop, for those who name none."""
    for usual, ours in (("postgres", "postgresql+asyncpg"), ("postgresql", "postgresql+asyncpg"), ("sqlite", SQLITE)):
        if url.startswith(f"{usual}://"):
            return ours + url.removeprefix(usual)
    return url


def _tame_sqlite(engine: AsyncEngine) -> None:
    """WAL, waiting for locks, and real transactions: the driver would commit each schema change at once."""

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own transactions off; `begin` below makes them
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # a writer takes the lock at once: one that begins by reading may find itself outdated when it writes
        writes = connection.get_execution_options().get("coserve_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, in the caller's transaction. Raises `DatabaseError` for a newer one."""
    config = alembic_config()
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in known:
        raise DatabaseError(
            f"The database was written by a newer coserve (schema {present}; this version knows "
            f"{scripts.get_current_head()}). Use that version, or another home directory."
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
