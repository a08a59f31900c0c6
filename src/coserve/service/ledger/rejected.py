"""Entries that no database takes and lines that cannot be read: kept for a person, out of the way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("coserve.service.ledger")


class Rejected:
    """A file of lines as they were. What cannot even be written there is in the log, whole."""

    def __init__(self, path: Path):
        self._path = path

    def put(self, line: bytes, why: object) -> None:
        reason = " ".join(str(why).split())[:300]
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line.rstrip(b"\n") + b"\n")
            finally:
                os.close(file)
        except OSError:
            log.critical("a line of the bill cannot be recorded nor kept (%s): %r", reason, line)
        else:
            log.error("a line of the bill cannot be recorded (%s); it is kept in %s", reason, self._path)
