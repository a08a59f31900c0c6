"""One server for one home directory: two would both resume its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from coserve.errors import Conflict

try:
    import fcntl
except ImportError:  # not a POSIX system: the operator has to see to it
    fcntl = None  # type: ignore[assignment]


class HomeLock:
    """Held from `acquire` to `release`, or until the process dies however it may."""

    def __init__(self, home: Path):
        self._path = home / "server.lock"
        self._file: IO[bytes] | None = None

    def acquire(self) -> None:
        """Raises `Conflict` if another server runs on this home directory."""
        file = self._path.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            home = self._path.parent
            raise Conflict(f"Another server runs on {home}. Stop it, or use another home directory.") from None
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
