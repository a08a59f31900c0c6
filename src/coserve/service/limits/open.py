"""Which store a URL means."""

from __future__ import annotations

from sqlalchemy.exc import ArgumentError

from coserve.errors import InvalidRequest
from coserve.service.limits.memory import MemoryStore
from coserve.service.limits.shared import Backend, SharedStore
from coserve.service.limits.store import LimitStore

REDIS = ("redis", "rediss", "unix")
POSTGRES = ("postgresql", "postgres", "postgresql+asyncpg")


def open_store(url: str | None) -> LimitStore:
    """The store, yet to be opened. None: in this process's memory.

    Raises: `InvalidRequest` if the URL means none, or if the package that it needs is not installed.
    """
    return MemoryStore() if url is None else SharedStore(_backend(url))


def _backend(url: str) -> Backend:
    scheme = url.partition(":")[0]
    extra = "redis" if scheme in REDIS else "postgres"
    try:
        if scheme in REDIS:
            from coserve.service.limits.redis import RedisBackend

            return RedisBackend(url)
        if scheme in POSTGRES:
            from coserve.service.limits.postgres import PostgresBackend

            return PostgresBackend(url)
    except ImportError as error:
        raise InvalidRequest(f"Limits at {scheme}:// need another package: pip install 'coserve[{extra}]'.") from error
    except (ValueError, ArgumentError):  # which may quote the password
        raise InvalidRequest(f"The URL of the limits' store, {scheme}://..., is not valid.") from None
    raise InvalidRequest(f"Limits cannot be kept at {scheme!r}: use redis://... or postgresql://..., or set no URL.")
