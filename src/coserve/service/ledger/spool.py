"""Finished entries on their way to the database: an append-only file, emptied only after the commit.

An entry is one line, its CRC-32 and its JSON, written by one `os.write`. A file that has grown large is followed by
another and removed once all of it is in the database. After a crash everything that is left is read again from its
beginning: the database knows by their ids which entries it has.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections import deque
from pathlib import Path

from coserve.service.ledger.entry import Entry
from coserve.service.ledger.rejected import Rejected

log = logging.getLogger("coserve.service.ledger")

FILE_BYTES = 1 << 20
_PREFIX = "spool-"


class Spool:
    """Appended to and read on one thread. Raises `OSError` if its directory cannot be used."""

    def __init__(self, directory: Path, rejected: Rejected, file_bytes: int = FILE_BYTES):
        self._directory = directory
        self._rejected = rejected
        self._file_bytes = file_bytes
        numbers = sorted(int(path.stem.removeprefix(_PREFIX)) for path in directory.glob(f"{_PREFIX}*.jsonl"))
        self._numbers = deque(numbers or [1])  # of the files that are left, oldest first
        self._synced = self._numbers[0]  # files before this one are safe on the disk
        self._file = self._open()
        self._size = _repair(self._file)
        self._done = 0  # bytes of the oldest file that are in the database
        self._read = 0  # bytes of it that were read
        self._unreadable: list[tuple[bytes, Exception]] = []  # lines among them

    def _path(self, number: int) -> Path:
        return self._directory / f"{_PREFIX}{number:08d}.jsonl"

    def _open(self) -> int:
        return os.open(self._path(self._numbers[-1]), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    @property
    def empty(self) -> bool:
        return len(self._numbers) == 1 and self._done == self._size

    def append(self, entry: Entry) -> None:
        """Raises `OSError` if it cannot be kept; then nothing of it is."""
        if self._size >= self._file_bytes:
            self._next_file()
        line = _seal(entry.as_json())
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += written

    def _next_file(self) -> None:
        self._numbers.append(self._numbers[-1] + 1)
        try:
            file = self._open()
        except OSError:
            self._numbers.pop()
            raise
        os.close(self._file)
        self._file, self._size = file, 0

    def read(self, limit: int) -> list[Entry]:
        """The oldest entries that are not done, and no lines that cannot be read: `done` sets those aside."""
        with self._path(self._numbers[0]).open("rb") as file:
            file.seek(self._done)
            lines = [line for _ in range(limit) if (line := file.readline())]
            self._read = file.tell()
        entries = []
        self._unreadable.clear()
        for line in lines:
            try:
                entries.append(Entry.from_json(_unseal(line)))
            except (ValueError, TypeError) as error:
                self._unreadable.append((line, error))
        return entries

    def done(self) -> None:
        """What `read` returned last is in the database."""
        for line, error in self._unreadable:
            self._rejected.put(line, error)
        self._unreadable.clear()
        self._done = self._read
        last = len(self._numbers) == 1
        if last and self._done == self._size:
            os.ftruncate(self._file, 0)
            self._size = self._done = self._read = 0
        elif not last and self._done >= self._path(self._numbers[0]).stat().st_size:
            self._path(self._numbers.popleft()).unlink()
            self._done = self._read = 0

    def sync(self) -> None:
        """Wait until all that was appended is safe from a power failure. Raises `OSError`."""
        newest = self._numbers[-1]
        for number in [number for number in self._numbers if number >= self._synced]:
            _fsync(self._path(number))
        _fsync(self._directory)
        self._synced = newest

    def close(self) -> None:
        os.close(self._file)


def _seal(text: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _unseal(line: bytes) -> bytes:
    """Raises `ValueError` for a torn line."""
    check, _, text = line.rstrip(b"\n").partition(b" ")
    if int(check, 16) != zlib.crc32(text):
        raise ValueError("it is torn")
    return text


def _repair(file: int) -> int:
    """Cut off a last line that has no end; returns the size that is left."""
    size = os.fstat(file).st_size
    whole = size
    while whole and os.pread(file, 1, whole - 1) != b"\n":
        whole -= 1
    if whole < size:
        log.warning("the spool ended in the middle of a line, which is cut off")
        os.ftruncate(file, whole)
    return whole


def _fsync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
