"""The database: opened and brought up to date at start, read by many, written by one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from coserve.errors import CoserveError, Unavailable

SQLITE = "sqlite+aiosqlite"
CONNECT_SECONDS = 5.0
SCHEMA = "0004"  # the newest of the migrations


class DatabaseError(CoserveError):
    """The database cannot be used: says why and what to do."""

    code = "database_error"


def sqlite_url(path: Path) -> str:
    return f"{SQLITE}:///{path}"


class Database:
    """Sessions on one database.

    Raises `DatabaseError` for a URL that cannot be, and from `open` if the database cannot be opened or its schema is
    newer than this version's. Later, sessions raise `Unavailable` while it is away, locked or full.
    """

    def __init__(self, url: str):
        self.url = _with_driver(url)
        try:
            patience = {} if self.url.startswith("sqlite") else {"timeout": CONNECT_SECONDS}
            self._engine = create_async_engine(self.url, connect_args=patience)
        except (ArgumentError, NoSuchModuleError):
            raise DatabaseError(
                "The database's URL must be like postgresql://user@host/name or sqlite:////file."
            ) from None
        except ImportError:
            raise DatabaseError("PostgreSQL needs asyncpg: pip install 'coserve[postgres]'.") from None
        self._writers = self._engine.execution_options(coserve_writes=True)
        self._one_writer = asyncio.Lock()
        _tell_when_away(self._engine)
        if self._engine.dialect.name == "sqlite":
            _tame_sqlite(self._engine)

    async def open(self) -> None:
        try:
            async with self._writers.begin() as connection:
                await connection.run_sync(migrate)
        except (SQLAlchemyError, OSError, ImportError, Unavailable) as error:
            await self.close()
            raise DatabaseError(f"The database cannot be opened: {reason(error)}.") from error
        except DatabaseError:
            await self.close()
            raise

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        with _away_is_unavailable():
            async with AsyncSession(self._engine, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction, committed at the end of the block. Writers of this process take turns."""
        with _away_is_unavailable():
            async with (
                self._one_writer,
                AsyncSession(self._writers, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session


def reason(error: Exception) -> object:
    """Why a session failed, in the driver's words, without the statement."""
    cause = error.__cause__ if isinstance(error, Unavailable) else error
    return getattr(cause, "orig", None) or cause


def _away() -> Unavailable:
    return Unavailable("The database cannot be used at the moment; please try again shortly.", code="database_away")


@contextmanager
def _away_is_unavailable() -> Iterator[None]:
    """What a statement was wrong in stays an error of its own."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or isinstance(error, OperationalError):
            raise _away() from error
        raise
    except PoolTimeout as error:
        raise _away() from error


def _tell_when_away(engine: AsyncEngine) -> None:
    """Drivers raise whatever they like when they cannot connect: errors of their own, of sockets, of names."""

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, _record: Any, args: Any, options: Any) -> Any:
        try:
            return dialect.connect(*args, **options)
        except ImportError:
            raise
        except Exception as error:
            raise _away() from error


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


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, in the caller's transaction. Raises `DatabaseError` for a newer one."""
    present = _schema(connection)
    if present == SCHEMA:
        return
    from coserve.service.migrations import known, upgrade  # Alembic is slow to import, and seldom needed

    if present is not None and present not in known():
        raise DatabaseError(
            f"The database was written by a newer coserve (schema {present}; this version knows {SCHEMA}). "
            "Use that version, or another home directory."
        )
    upgrade(connection)


def _schema(connection: Connection) -> str | None:
    """The migration that was made last; None before the first."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))
