"""Scopes: which parts of the API a key opens."""

from __future__ import annotations

from collections.abc import Iterable

from coserve.errors import CoserveError, InvalidRequest

ALL = "all"
"""Everything but administration."""
ADMIN = "admin"
"""Projects, keys, usage and costs of everybody, sleep; nothing else."""

_PATHS = (
    ("/v1/organization", ADMIN),
    ("/sleep", ADMIN),
    ("/wake_up", ADMIN),
    ("/is_sleeping", ADMIN),
    ("/v1/chat/", "inference"),
    ("/v1/completions", "inference"),
    ("/v1/models", "models"),
    ("/v1/files", "files"),
    ("/v1/fine_tuning", "fine_tuning"),
    ("/v1/batches", "batches"),
    ("/v1/chips", "plan"),
    ("/v1/plan", "plan"),
    ("/coserve/", "stats"),
)
SCOPES = (ALL, ADMIN, *dict.fromkeys(scope for _, scope in _PATHS if scope != ADMIN))


class Forbidden(CoserveError):
    """The key is valid, but not for this."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


def scope_of(path: str) -> str | None:
    """The scope that a path needs; None for a path that leads nowhere."""
    return next((scope for prefix, scope in _PATHS if path.startswith(prefix)), None)


def check_scope(path: str, scopes: frozenset[str]) -> None:
    """Raises `Forbidden` unless `scopes` open the path."""
    needed = scope_of(path)
    if needed is None or needed in scopes or (ALL in scopes and needed != ADMIN):
        return
    raise Forbidden(f"This API key does not have the scope {needed!r}, which {path.split('?')[0]!r} needs.")


def check_scopes(scopes: Iterable[str]) -> None:
    """Raises `InvalidRequest` that lists the scopes there are, or for administration beside anything else."""
    chosen = list(scopes)
    if ADMIN in chosen and chosen != [ADMIN]:
        raise InvalidRequest(f"'scopes': a key with {ADMIN!r} can have no other scope.", param="scopes")
    wrong = next((scope for scope in chosen if scope not in SCOPES), None)
    if wrong is not None or not chosen:
        what = f"{wrong!r} is no scope" if chosen else "at least one scope is needed"
        raise InvalidRequest(f"'scopes': {what}; there are {', '.join(SCOPES)}.", param="scopes")
