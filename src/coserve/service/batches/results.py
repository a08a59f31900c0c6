"""What has become of a batch's requests so far, in a file that a kill cannot spoil."""

from __future__ import annotations

import errno
import os
import re
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_RECORD = re.compile(rb"(\d{1,18}) (output|error) \{.*\}\n", re.DOTALL)
_NOTHING = -1


@dataclass(frozen=True)
class Result:
    """A line of the output file, or of the error file if not `ok`."""

    ok: bool
    line: bytes  # JSON, without its end


class Results:
    """An append-only file: for each request, as it ends, its index, "output" or "error", and its line.

    Each record is one `os.write`. A record that a kill cut short is removed when the file is opened again; one that
    cannot be read counts as none, and its request is run again. In memory is 8 bytes for each request.

    Raises `OSError`; an `append` that raises has changed nothing. To be closed, or used as `with Results(...)`.
    """

    def __init__(self, path: Path, total: int):
        self.completed = self.failed = 0
        self._offsets = array("q", [_NOTHING]) * total
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._size = self._recover(path)
        except BaseException:
            self.close()
            raise

    def _recover(self, path: Path) -> int:
        """The file's size once what is torn at its end is gone."""
        size = 0
        with path.open("rb") as file:
            for record in file:
                if not record.endswith(b"\n"):
                    os.ftruncate(self._file, size)
                    break
                match = _RECORD.fullmatch(record)
                if match and int(match[1]) < len(self._offsets) and int(match[1]) not in self:
                    self._count(int(match[1]), match[2] == b"output", size)
                size += len(record)
        return size

    def _count(self, index: int, ok: bool, offset: int) -> None:
        self._offsets[index] = offset
        self.completed += ok
        self.failed += not ok

    def __len__(self) -> int:
        """The requests that there are, ended or not."""
        return len(self._offsets)

    def __contains__(self, index: int) -> bool:
        return self._offsets[index] != _NOTHING

    def append(self, index: int, result: Result) -> None:
        record = b"%d %s %s\n" % (index, b"output" if result.ok else b"error", result.line)
        try:
            written = os.write(self._file, record)
            if written < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._count(index, result.ok, self._size)
        self._size += written

    def read(self, index: int) -> Result | None:
        """None if the request has not ended."""
        if index not in self:
            return None
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(self._offsets[index])
            _, kind, line = file.readline().rstrip(b"\n").split(b" ", 2)
        return Result(kind == b"output", line)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
