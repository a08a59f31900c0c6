"""Whose turn it is: few requests run at once, fairly chosen among projects and batches."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BATCHES_OF_A_PROJECT = 4
"""So many are worked on at once; the others wait for one of them to end."""

Who = tuple[str, str]  # project, batch


class Turns:
    """At most `requests` run at once over all batches. The next place is for the project that has the fewest (of
    equals, the one whose last turn is longest ago), and there for the batch that has the fewest."""

    def __init__(self, requests: int):
        self.checking = asyncio.Semaphore(1)  # reading a file's mistakes is work for a processor
        self._batches: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(BATCHES_OF_A_PROJECT))
        self._free = requests
        self._running: Counter[str] = Counter()  # by project and by batch, whose names never meet
        self._waiting: dict[Who, deque[asyncio.Future[None]]] = {}  # the last served at the end
        self._last_turn: Counter[str] = Counter()  # of each project, counted in turns
        self._turns = 0

    def batch(self, project: str) -> asyncio.Semaphore:
        """To be held while a batch of the project is worked on."""
        return self._batches[project]

    def running(self, batch: str) -> int:
        """Requests of the batch that have a place."""
        return self._running[batch]

    @asynccontextmanager
    async def request(self, project: str, batch: str) -> AsyncIterator[None]:
        """A place for one request."""
        who = project, batch
        await self._take(who)
        try:
            yield
        finally:
            self._give_back(who)

    async def _take(self, who: Who) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place came at the same moment
                self._give_back(who)
            raise

    def _grant(self) -> None:
        while self._free and self._waiting:
            who = min(self._waiting, key=self._order)
            turns = self._waiting.pop(who)
            turn = turns.popleft()
            if turns:
                self._waiting[who] = turns
            if not turn.cancelled():
                self._occupy(who)
                turn.set_result(None)

    def _order(self, who: Who) -> tuple[int, int, int]:
        project, batch = who
        return self._running[project], self._last_turn[project], self._running[batch]

    def _occupy(self, who: Who) -> None:
        self._free -= 1
        self._turns += 1
        self._running.update(who)
        self._last_turn[who[0]] = self._turns

    def _give_back(self, who: Who) -> None:
        self._free += 1
        self._running.subtract(who)
        for name in who:
            if not self._running[name]:
                del self._running[name]
        self._grant()
