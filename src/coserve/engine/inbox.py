"""What other threads ask of the engine's own one: done between two of its steps, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from coserve.errors import ShuttingDown

T = TypeVar("T")


class Inbox:
    """Made on the thread that reads it."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._reader = threading.current_thread()
        self._lock = threading.RLock()  # the garbage collector may end a `generate`, which cancels, at any time
        self.closed = False

    @property
    def empty(self) -> bool:
        return self._asked.empty()

    def put(self, function: Callable[[], None]) -> bool:
        """Have it done. Whether it will be: not once the inbox is closed."""
        with self._lock:
            if not self.closed:
                self._asked.put(function)
            return not self.closed

    def ask(self, function: Callable[[], T]) -> T:
        """Have it done, and wait for what it returns or raises. Raises `ShuttingDown` if the inbox is closed."""
        if threading.current_thread() is self._reader:
            return function()
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        if not self.put(run):
            raise ShuttingDown
        return answer.result()

    def read(self) -> None:
        """Do all that was asked."""
        while True:
            try:
                function = self._asked.get_nowait()
            except queue.Empty:
                return
            function()

    def wait(self, seconds: float) -> None:
        """Until something is asked, and do that; no longer than so many seconds."""
        try:
            function = self._asked.get(timeout=seconds)
        except queue.Empty:
            return
        function()

    def close(self) -> bool:
        """Nothing more is taken; what was asked is there to be read. False if it was closed already."""
        with self._lock:
            if self.closed:
                return False
            self.closed = True
            self._asked.put(lambda: None)  # whoever waits looks up
            return True
