"""Finished entries that the database does not have yet: in the spool, or, while its disk is full, in memory."""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice

from coserve.service.ledger.entry import Entry
from coserve.service.ledger.meter import Meter, Slot, memory_slot
from coserve.service.ledger.rejected import Rejected
from coserve.service.ledger.seldom import Seldom
from coserve.service.ledger.spool import Spool

log = logging.getLogger("coserve.service.ledger")

MOST_IN_MEMORY = 10_000


class Backlog:
    """First kept, then freed: an entry's slot in the meter is given up when the spool or the database has it.

    A full disk stops no request. Its entry waits in memory and goes straight to the database; until it is there its
    slot stays taken, so that even a kill loses nothing. Only when the database is away as well, and 10,000 wait,
    are entries dropped, each of them whole into the log.
    """

    def __init__(self, spool: Spool, meter: Meter, rejected: Rejected):
        self._spool = spool
        self._meter = meter
        self._rejected = rejected
        self._stuck: deque[tuple[Entry, Slot]] = deque()
        self._taken = 0  # of the stuck ones
        self._full = Seldom(log, logging.CRITICAL)

    @property
    def empty(self) -> bool:
        return not self._stuck and self._spool.empty

    def put(self, entry: Entry, slot: Slot | None = None) -> None:
        """Keep a finished entry."""
        slot = slot or memory_slot()
        try:
            self._spool.append(entry)
        except OSError as error:
            self._full.say("the bill cannot be kept on disk (%s): it goes on in memory", error.strerror)
            self._stick(entry, slot)
        else:
            self._meter.end(slot)

    def _stick(self, entry: Entry, slot: Slot) -> None:
        if len(self._stuck) >= MOST_IN_MEMORY:
            self._rejected.put(entry.as_json(), "the disk is full and the database is away")
            return  # its slot stays taken: the next start bills it as interrupted, unless it was in memory
        self._stuck.append((entry, slot))

    def take(self, limit: int) -> list[Entry]:
        """The next entries for the database, oldest first as far as one can tell."""
        stuck = [entry for entry, _ in islice(self._stuck, limit)]
        self._taken = len(stuck)
        return stuck + self._spool.read(limit)

    def done(self) -> None:
        """What `take` returned last is in the database."""
        self._spool.done()
        for _ in range(self._taken):
            self._meter.end(self._stuck.popleft()[1])
        self._taken = 0

    def save(self) -> None:
        """The database is away: what waits in memory goes to the disk if there is room again."""
        for _ in range(len(self._stuck)):
            self.put(*self._stuck.popleft())

    def sync(self) -> None:
        """Raises `OSError`."""
        self._spool.sync()
