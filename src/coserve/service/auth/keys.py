"""API keys: made, kept as keyed hashes, found again.

A key is "sk-cs-" and 256 random bits. The database holds HMAC-SHA256(secret, key), where the secret is a file
of mode 0600 beside it: whoever reads the database alone can neither use a key nor test a guess. A key is
shown once, when it is made, and never logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Select, Text, cast, select, update

from coserve.errors import InvalidRequest, NotFound
from coserve.service.auth.audit import COMMAND_LINE, record
from coserve.service.auth.projects import Project, check_name, find_project
from coserve.service.auth.scopes import ADMIN, ALL, check_scopes
from coserve.service.database import Database
from coserve.service.ids import new_id, now
from coserve.service.tables import DEFAULT_PROJECT, AuditRow, KeyRow, ProjectRow

PREFIX = "sk-cs-"
VISIBLE = len(PREFIX) + 4  # characters of a key that may be shown
SECRET_BYTES = 32
SECRET_FILE = "secret.key"
LATEST = 253_402_300_799  # the end of the year 9999
LOOK_BACK = 32  # rows of the audit log: with several writers a row may appear below one that was seen before
CONFIGURED = "configured"
"""The id of the key that a server is started with: it is in no database."""


@dataclass(frozen=True)
class Key:
    """Who a request comes from."""

    id: str
    hash: bytes
    project: Project
    tier: str | None = None  # None: the highest there is
    up_to: str | None = None  # the highest tier that it may ask for
    scopes: frozenset[str] = frozenset({ALL})
    models: tuple[str, ...] | None = None  # None: those of its tier
    expires_at: int | None = None


class KeyRing:
    """The keys that open the door, held in memory and brought up to date by `refresh`.

    They are found by their hash, which nobody can steer without the secret; comparing takes constant time.
    """

    def __init__(self, secret: bytes, configured: str | None = None):
        self._secret = secret
        self._configured = configured
        self._keys: dict[bytes, Key] = {}
        self._by_id: dict[str, Key] = {}
        self._projects: dict[str, Project] = {}
        self._seen: tuple[int, ...] | None = None  # the last rows of the audit log that are in here
        self._refreshing = asyncio.Lock()  # so that what was read first is never kept last

    def hash(self, key: str) -> bytes:
        """32 bytes. `key` may hold any characters that a header can carry."""
        return hash_key(self._secret, key)

    def find(self, key: str) -> Key | None:
        """The key, unless it is unknown, revoked or over."""
        digest = self.hash(key)
        known = self._keys.get(digest)
        if known is None or not hmac.compare_digest(known.hash, digest):
            return None
        return _valid(known)

    def of_id(self, key_id: str) -> Key | None:
        """The key for what goes on after its request, unless it is revoked or over."""
        known = self._by_id.get(key_id)
        return None if known is None else _valid(known)

    def project(self, project_id: str) -> Project | None:
        return self._projects.get(project_id)

    def __len__(self) -> int:
        return len(self._keys)

    async def refresh(self, database: Database) -> None:
        """Take over what any process has changed. Each change has a row in the audit log: one look tells."""
        async with self._refreshing, database.read() as session:
            seen = tuple(await session.scalars(select(AuditRow.seq).order_by(AuditRow.seq.desc()).limit(LOOK_BACK)))
            if seen == self._seen:
                return
            rows = list(await session.scalars(select(KeyRow).where(KeyRow.revoked_at.is_(None))))
            projects = {row.id: Project.of(row) for row in await session.scalars(select(ProjectRow))}
            keys = [_key(row, projects[row.project_id]) for row in rows if not projects[row.project_id].archived]
            if self._configured is not None:
                keys.append(Key(CONFIGURED, self.hash(self._configured), projects[DEFAULT_PROJECT]))
            self._keys, self._projects, self._seen = {key.hash: key for key in keys}, projects, seen
            self._by_id = {key.id: key for key in keys}

    async def make(self, database: Database, new: NewKey, actor: str) -> tuple[str, KeyRow]:
        """As `make_key`, and valid here before this returns."""
        made = await make_key(database, self._secret, new, actor)
        await self.refresh(database)
        return made


def _valid(key: Key) -> Key | None:
    return None if key.expires_at is not None and now() >= key.expires_at else key


def _key(row: KeyRow, project: Project) -> Key:
    return Key(
        id=row.id,
        hash=bytes.fromhex(row.hash),
        project=project,
        tier=row.tier or project.tier,
        up_to=row.up_to,
        scopes=frozenset(row.scopes),
        models=None if row.models is None else tuple(row.models),
        expires_at=row.expires_at,
    )


async def open_key_ring(database: Database, home: Path, configured: str | None) -> tuple[KeyRing, str | None]:
    """The ring of all valid keys, and the key that was made because there was none; show that one, once.

    A `configured` key opens the door for as long as this process runs; it is not stored.
    """
    secret, fresh = read_secret(home / SECRET_FILE)
    if fresh:  # no stored hash can be matched again
        await _revoke_all(database)
    ring = KeyRing(secret, configured)
    await ring.refresh(database)
    if len(ring):
        return ring, None
    key, _ = await make_key(database, secret, NewKey("first"))
    await ring.refresh(database)
    return ring, key


async def _revoke_all(database: Database) -> None:
    async with database.write() as session:
        valid = list(await session.scalars(select(KeyRow.id).where(KeyRow.revoked_at.is_(None))))
        await session.execute(update(KeyRow).where(KeyRow.id.in_(valid)).values(revoked_at=now()))
        for key_id in valid:
            record(session, COMMAND_LINE, "api_key.deleted", key_id, {"why": "the server's secret was lost"})


@dataclass(frozen=True)
class NewKey:
    """What a key is to be. Raises `InvalidRequest` for what cannot be."""

    name: str
    project: str = DEFAULT_PROJECT
    tier: str | None = None
    up_to: str | None = None
    scopes: tuple[str, ...] = (ALL,)
    models: tuple[str, ...] | None = None
    expires_at: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_scopes(self.scopes)
        if self.scopes == (ADMIN,) and self.project != DEFAULT_PROJECT:
            raise InvalidRequest(f"An admin key belongs to {DEFAULT_PROJECT!r}.", param="project")
        if self.models is not None and not (self.models and all(self.models)):
            raise InvalidRequest("'models' must name at least one model, or be null for all.", param="models")
        if self.expires_at is not None and not now() < self.expires_at <= LATEST:
            when = "in the past" if self.expires_at <= now() else "too far away"
            raise InvalidRequest(f"'expires_at' is {when}.", param="expires_at")


async def make_key(database: Database, secret: bytes, new: NewKey, actor: str = COMMAND_LINE) -> tuple[str, KeyRow]:
    """A new key, stored and valid at once: the key itself, to be shown once, and its row.

    Raises `NotFound` without its project, `Conflict` if that is archived.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    row = KeyRow(
        id=new_id("key"),
        name=new.name,
        prefix=key[:VISIBLE],
        hash=hash_key(secret, key).hex(),
        project_id=new.project,
        tier=new.tier,
        up_to=new.up_to,
        scopes=list(dict.fromkeys(new.scopes)),
        models=None if new.models is None else list(new.models),
        created_at=now(),
        expires_at=new.expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    async with database.write() as session:
        await find_project(session, new.project)
        session.add(row)
        record(session, actor, "api_key.created", row.id, _granted(row))
    return key, row


def _granted(row: KeyRow) -> dict[str, Any]:
    """What the audit log tells of a new key."""
    names = ("name", "tier", "up_to", "scopes", "models", "expires_at")
    return {"project": row.project_id, **{name: getattr(row, name) for name in names}}


async def list_keys(database: Database, project: str | None = None) -> list[KeyRow]:
    """The valid ones, oldest first."""
    query = valid_keys().order_by(KeyRow.seq)
    async with database.read() as session:
        return list(await session.scalars(query if project is None else query.where(KeyRow.project_id == project)))


def valid_keys(*, admin: bool | None = None) -> Select[Any]:
    """Those not revoked: all, only the admin keys, or only the others."""
    query = select(KeyRow).where(KeyRow.revoked_at.is_(None))
    if admin is None:
        return query
    only_admin = cast(KeyRow.scopes, Text) == json.dumps([ADMIN])  # it is a key's only scope
    return query.where(only_admin if admin else ~only_admin)


async def revoke_key(
    database: Database,
    key_id: str,
    actor: str = COMMAND_LINE,
    *,
    project: str | None = None,
    admin: bool | None = None,
) -> KeyRow:
    """For ever. Raises `NotFound` for a key that is not there (in the project), or was revoked before."""
    query = valid_keys(admin=admin).where(KeyRow.id == key_id)
    async with database.write() as session:
        row = await session.scalar(query if project is None else query.where(KeyRow.project_id == project))
        if row is None:
            raise NotFound(f"There is no valid API key {key_id!r}.")
        row.revoked_at = now()
        record(session, actor, "api_key.deleted", key_id, {"name": row.name, "project": row.project_id})
    return row


def hash_key(secret: bytes, key: str) -> bytes:
    return hmac.digest(secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256)


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
