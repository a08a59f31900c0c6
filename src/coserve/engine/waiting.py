"""The requests that wait for a seat, and whose turn it is."""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping

from coserve.engine.active import ActiveRequest
from coserve.engine.fairness import TokenCounters

_SPARE = 64  # deadlines of requests that do not wait any more, which are kept at least until they are looked through


class Level:
    """The waiting requests of one priority: a queue for each share, oldest first."""

    def __init__(self, priority: int, counters: TokenCounters):
        self.priority, self._counters = priority, counters
        self.queues: dict[str, deque[ActiveRequest]] = {}
        self.count = 0  # read by other threads
        self.last_turn = -math.inf  # when one of them was last admitted

    def add(self, request: ActiveRequest) -> None:
        queue = self.queues.setdefault(request.share, deque())
        bisect.insort(queue, request, key=lambda r: r.arrived)
        self.count += 1

    def remove(self, request: ActiveRequest) -> None:
        queue = self.queues[request.share]
        queue.remove(request)
        if not queue:
            del self.queues[request.share]
        self.count -= 1

    def next(self) -> ActiveRequest:
        """The oldest request of the share that was served least; of equals, the older one."""
        served = self._counters.served
        share = min(self.queues, key=lambda share: (served(share), self.queues[share][0].arrived))
        return self.queues[share][0]


class WaitingQueue:
    """Requests by priority; within a priority, by what their shares were served.

    A priority that was passed over ages: for every `aging` seconds in which none of its requests was admitted, its next
    one counts as one higher, and keeps that rank. So the lowest is never starved, and yet a flood of old requests
    overtakes nobody: they rise one at a time.
    """

    def __init__(self, aging: float, counters: Mapping[int, TokenCounters]):
        self._aging, self._counters = aging, counters
        self._levels: dict[int, Level] = {}
        self._deadlines: list[tuple[float, int, ActiveRequest]] = []  # a heap
        self._numbers = itertools.count()  # so that equal deadlines need not compare requests

    def __len__(self) -> int:
        return self.count_from(None)

    def __iter__(self) -> Iterator[ActiveRequest]:
        """Higher priorities first."""
        for _, level in sorted(self._levels.items(), reverse=True):
            for queue in level.queues.values():
                yield from queue

    def count_from(self, priority: int | None) -> int:
        """How many wait with at least this priority; None: all. From any thread."""
        return sum(v.count for v in tuple(self._levels.values()) if priority is None or v.priority >= priority)

    @property
    def highest(self) -> float:
        """The highest priority that waits; -inf if nobody does."""
        return max((level.priority for level in self._levels.values() if level.count), default=-math.inf)

    def add(self, request: ActiveRequest) -> None:
        priority = request.priority
        if priority not in self._levels:
            self._levels[priority] = Level(priority, self._counters[priority])
        self._levels[priority].add(request)
        patience = request.request.queue_seconds
        if patience is not None and not request.admitted:
            heapq.heappush(self._deadlines, (request.arrived + patience, next(self._numbers), request))
            if len(self._deadlines) > 2 * len(self) + _SPARE:
                self._drop_deadlines()

    def remove(self, request: ActiveRequest) -> None:
        self._levels[request.priority].remove(request)

    def admit(self, request: ActiveRequest, rank: int, now: float) -> None:
        """It was this request's turn."""
        self.remove(request)
        self._levels[request.priority].last_turn = now
        request.admitted, request.rank = True, rank

    def next(self, now: float, lowest: float = -math.inf) -> tuple[ActiveRequest, int]:
        """Whose turn it is, and at which rank, of priorities from `lowest` on; the older one of equals."""
        heads = (level.next() for level in self._levels.values() if level.count and level.priority >= lowest)
        turns = ((request, self._rank(request, now)) for request in heads)
        return max(turns, key=lambda turn: (turn[1], -turn[0].arrived))

    def expired(self, now: float) -> list[ActiveRequest]:
        """Those that were never admitted and will not wait any longer."""
        over = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.admitted:
                over.append(request)
        return over

    def _drop_deadlines(self) -> None:
        """Of those that do not wait any more: there are as many again, so that each costs a moment once."""
        waiting = set(map(id, self))
        self._deadlines = [entry for entry in self._deadlines if id(entry[2]) in waiting]
        heapq.heapify(self._deadlines)

    def _rank(self, request: ActiveRequest, now: float) -> int:
        since = max(request.arrived, self._levels[request.priority].last_turn)
        return max(request.rank, request.priority + int((now - since) / self._aging))
