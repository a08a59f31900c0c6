"""From other threads to the event loop, in order, with one wake-up for many letters."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any


class Mailbox:
    """Calls `deliver(item)` on the loop for each `post(deliver, item)` of any thread, in their order.

    An engine's step ends with one output for each running request. Waking the loop costs a system call, so it
    is woken once and finds them all. The flag falls before the letters are read: one that comes in between
    wakes the loop once too often, and never once too seldom.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._letters: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False

    def post(self, deliver: Callable[[Any], None], item: Any) -> None:
        self._letters.append((deliver, item))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                self._loop.call_soon_threadsafe(self._deliver_all)

    def _deliver_all(self) -> None:
        self._woken = False
        while self._letters:
            deliver, item = self._letters.popleft()
            deliver(item)
