"""What is in flight, in a file mapped into memory: it survives the process, however that dies.

The file is a row of slots, one for each request under way:

    word 0 (8 bytes)  state: FREE, or USED
    word 1            completion tokens delivered so far; NOTHING before anything was
    word 2            tokens of the prompt that came from the cache
    word 3            length of the body (upper half) and its CRC-32 (lower half)
    the rest          the body: JSON of the entry and its rates

The body is written first and the state last, so a slot is either whole or free. Counting a token is then one
aligned 8-byte store into the page cache, which the kernel keeps when the process is killed. After a power failure
the file may be seconds old: a request that was in flight then may be billed for less than was delivered, or not
at all, but never for more; a slot that was half on disk does not match its checksum and bills nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coserve.service.compact import dumps
from coserve.service.ledger.entry import INTERRUPTED, Entry, Rates
from coserve.service.ledger.seldom import Seldom

log = logging.getLogger("coserve.service.ledger")

SLOT = 1024  # bytes
SEGMENT = 1024 * SLOT  # bytes by which the file grows
STATE, DELIVERED, CACHED, CHECK = range(4)
HEAD = 4 * 8  # bytes before the body
FREE, USED = 0, int.from_bytes(b"coserve1", "little")
NOTHING = -1
GROW_AGAIN_SECONDS = 1.0  # after a disk that was full


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one request: 8-byte words from `at` on, and the body's bytes (None: not in the file)."""

    words: memoryview[int] | array[int]
    at: int
    body: memoryview | None

    def read(self) -> tuple[int | None, int]:
        """Completion tokens delivered (None: nothing was), cached tokens."""
        delivered = self.words[self.at + DELIVERED]
        return (None if delivered == NOTHING else delivered), self.words[self.at + CACHED]

    def free(self) -> None:
        self.words[self.at + STATE] = FREE


def memory_slot() -> Slot:
    """A slot that no kill survives."""
    return Slot(array("q", [FREE, NOTHING, 0, 0]), 0, None)


class Meter:
    """The slots of one file. Raises `OSError` if it cannot be opened.

    When there is no room for a request, because the disk is full or its names are absurdly long, it gets a slot in
    memory: it is billed as any other, unless the process is killed before it is over.
    """

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._maps: list[tuple[mmap.mmap, memoryview, memoryview]] = []
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._used: list[Slot] = []  # by an earlier process
        self._grow_at = 0.0  # monotonic seconds
        self._no_room = Seldom(log)
        segments = -(-os.fstat(self._file).st_size // SEGMENT)
        for index in range(max(segments, 1)):
            self._map(index)

    def _map(self, index: int) -> None:
        self._allocate(index)
        mapped = mmap.mmap(self._file, SEGMENT, offset=index * SEGMENT)
        whole = memoryview(mapped)
        words = whole.cast("q")
        self._maps.append((mapped, whole, words))
        for start in range(SEGMENT - SLOT, -1, -SLOT):
            slot = Slot(words, start // 8, whole[start + HEAD : start + SLOT])
            self._slots.append(slot)
            (self._free if words[slot.at + STATE] == FREE else self._used).append(slot)

    def _allocate(self, index: int) -> None:
        """Fill the file up to the segment's end: storing into a hole of a full disk would kill the process."""
        size, end = os.fstat(self._file).st_size, (index + 1) * SEGMENT
        if size < end and os.pwrite(self._file, bytes(end - size), size) < end - size:
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin(self, entry: Entry, rates: Rates) -> Slot:
        """A slot that holds the entry, with nothing delivered."""
        body = dumps([vars(entry), rates.as_texts()])
        if len(body) > SLOT - HEAD:
            self._no_room.say("the request %s is not protected against a kill: its names are too long", entry.id)
            return memory_slot()
        slot = self._take()
        if slot is None or slot.body is None:
            return memory_slot()
        slot.body[: len(body)] = body
        words, at = slot.words, slot.at
        words[at + DELIVERED] = NOTHING
        words[at + CACHED] = 0
        words[at + CHECK] = _check(body)
        words[at + STATE] = USED
        return slot

    def _take(self) -> Slot | None:
        if not self._free and time.monotonic() >= self._grow_at:
            try:
                self._map(len(self._maps))
            except OSError as error:
                self._grow_at = time.monotonic() + GROW_AGAIN_SECONDS
                self._no_room.say(
                    "new requests are not protected against a kill: the meter cannot grow (%s)", error.strerror
                )
        return self._free.pop() if self._free else None

    def end(self, slot: Slot) -> None:
        """The request is over, and its entry is kept elsewhere."""
        slot.free()
        if slot.body is not None:
            self._free.append(slot)

    def recover(self) -> Iterator[tuple[Entry, Slot]]:
        """What an earlier process left in flight, as interrupted entries; `end` each slot once its entry is kept."""
        while self._used:
            slot = self._used.pop()
            try:
                entry, rates = _read_body(slot)
            except (ValueError, TypeError, ArithmeticError) as error:
                log.error("a slot of the meter cannot be read, and bills nothing: %s", error)
                self.end(slot)
                continue
            yield entry.settled(rates, *slot.read(), INTERRUPTED), slot

    def close(self) -> None:
        """No slot may be used any more."""
        for slot in self._slots:
            if slot.body is not None:
                slot.body.release()
        for mapped, whole, words in self._maps:
            words.release()
            whole.release()
            mapped.close()
        os.close(self._file)


def _check(body: bytes | memoryview) -> int:
    return len(body) << 32 | zlib.crc32(body)


def _read_body(slot: Slot) -> tuple[Entry, Rates]:
    """Raises: `ValueError`, `TypeError`, `ArithmeticError` for a torn or foreign one."""
    assert slot.body is not None
    check = slot.words[slot.at + CHECK]
    body = bytes(slot.body[: max(check, 0) >> 32])
    if slot.words[slot.at + STATE] != USED or _check(body) != check:
        raise ValueError("it is torn")
    fields, rates = json.loads(body)
    return Entry(**fields), Rates.from_texts(rates)
