"""API keys: made, kept as keyed hashes, checked at the door.

A key is "sk-cs-" and 256 random bits. The database holds HMAC-SHA256(secret, key), where the secret is a file
of mode 0600 beside it: whoever reads the database alone can neither use a key nor test a guess. A key is
shown once, when it is made, and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select, update
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve.errors import AuthenticationError
from coserve.service.database import Database
from coserve.service.errors import reply
from coserve.service.ids import new_id, now
from coserve.service.tables import KeyRow

PREFIX = "sk-cs-"
VISIBLE = len(PREFIX) + 4  # characters of a key that may be shown
SECRET_BYTES = 32


@dataclass(frozen=True)
class Key:
    """Who a request comes from."""

    id: str
    hash: bytes


class KeyRing:
    """The keys that open the door, held in memory.

    They are found by their hash, which nobody can steer without the secret; comparing takes constant time.
    """

    def __init__(self, secret: bytes):
        self._secret = secret
        self._keys: dict[bytes, Key] = {}

    def hash(self, key: str) -> bytes:
        """32 bytes. `key` may hold any characters that a header can carry."""
        return hmac.digest(self._secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256)

    def add(self, key_id: str, digest: bytes) -> None:
        self._keys[digest] = Key(key_id, digest)

    def find(self, key: str) -> Key | None:
        digest = self.hash(key)
        known = self._keys.get(digest)
        return known if known is not None and hmac.compare_digest(known.hash, digest) else None

    def __len__(self) -> int:
        return len(self._keys)


async def open_key_ring(database: Database, home: Path, configured: str | None) -> tuple[KeyRing, str | None]:
    """The ring of all valid keys, and the key that was made because there was none; show that one, once.

    A `configured` key opens the door for as long as this process runs; it is not stored.
    """
    secret, fresh = read_secret(home / "secret.key")
    ring = KeyRing(secret)
    async with database.write() as session:
        if fresh:  # no stored hash can be matched again
            await session.execute(update(KeyRow).where(KeyRow.revoked_at.is_(None)).values(revoked_at=now()))
        for row in await session.scalars(select(KeyRow).where(KeyRow.revoked_at.is_(None))):
            ring.add(row.id, bytes.fromhex(row.hash))
    if configured is not None:
        ring.add("configured", ring.hash(configured))
    return ring, None if len(ring) else await make_key(database, ring, "first")


async def make_key(database: Database, ring: KeyRing, name: str) -> str:
    """A new key, stored and valid at once."""
    key = PREFIX + secrets.token_urlsafe(32)
    digest = ring.hash(key)
    row = KeyRow(
        id=new_id("key"),
        name=name,
        prefix=key[:VISIBLE],
        hash=digest.hex(),
        created_at=now(),
        revoked_at=None,
    )
    async with database.write() as session:
        session.add(row)
    ring.add(row.id, digest)
    return key


def read_secret(path: Path) -> tuple[bytes, bool]:
    """The server's secret, and whether it was made just now. The file is written whole or not at all."""
    try:
        secret = path.read_bytes()
        path.chmod(0o600)
    except FileNotFoundError:
        secret = b""
    if len(secret) == SECRET_BYTES:
        return secret, False
    secret = secrets.token_bytes(SECRET_BYTES)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return secret, True


OPEN_PATHS = frozenset({"/health", "/metrics"})


class Door:
    """Middleware: nobody passes without a valid key, except to what is open to all."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                scope["coserve.key"] = identify(scope)
            except AuthenticationError as error:
                return await reply(error)(scope, receive, send)
        await self.app(scope, receive, send)


def identify(scope: Scope) -> Key:
    """Raises `AuthenticationError`, which never repeats the key."""
    header = Headers(scope=scope).get("authorization", "")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise AuthenticationError("An API key is needed, in the header 'Authorization: Bearer sk-cs-...'.")
    found = scope["app"].state.service.keys.find(key.strip())
    if found is None:
        raise AuthenticationError("This API key is not valid.")
    return found
