"""The input file of a batch, one request a line: read where it is needed, never all of it at once."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    number: int  # in the file, from 1
    offset: int  # bytes
    text: bytes


@dataclass(frozen=True)
class Asked:
    """One request of a batch."""

    custom_id: str
    body: bytes  # JSON


def lines(path: Path, limit: int) -> Iterator[Line]:
    """Those that are not blank. Of one with more than `limit` bytes only `limit` + 1 are there.

    Raises `OSError`.
    """
    with path.open("rb") as file:
        number = offset = 0
        while text := file.readline(limit + 1):
            number += 1
            if text.strip():
                yield Line(number, offset, text)
            while len(text) > limit and not text.endswith(b"\n"):
                text = file.readline(limit + 1)
            offset = file.tell()


class Requests:
    """The requests of a checked file by their index: 8 bytes of memory for each.

    Raises `OSError`, from reading as well.
    """

    def __init__(self, path: Path, limit: int):
        self._path = path
        self._offsets = array("Q", (line.offset for line in lines(path, limit)))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Asked:
        with self._path.open("rb") as file:
            file.seek(self._offsets[index])
            said = json.loads(file.readline())
        return Asked(said["custom_id"], json.dumps(said["body"]).encode())
