"""Steps that find no memory: whether they are tried again, and how large they may be."""

from __future__ import annotations

import math


class Shortage:
    """A step that found no memory is tried once more as it is; from then on steps are smaller, for a while.

    For the engine's thread alone.
    """

    SECONDS = 60.0  # what had the memory may be gone by then

    def __init__(self, most: int):
        """`most`: rows of a step where nothing is short."""
        self._most = self._limit = most
        self._until = -math.inf
        self._tried = False

    def most_rows(self, least: int, now: float) -> int:
        """Rows that a step may have; `least`: in any case."""
        return min(self._most, max(self._limit, least)) if now < self._until else self._most

    def launched(self) -> None:
        """A step has found its memory."""
        self._tried = False

    def try_again(self) -> bool:
        """Whether the step that has just failed should be tried as it is."""
        tried, self._tried = self._tried, True
        return not tried

    def make_smaller(self, rows: int, least: int, now: float) -> bool:
        """A step of so many rows is too large: half of it may do. False if it has no more than the `least` already."""
        if rows <= least:
            return False
        self._limit, self._until = max(least, rows // 2), now + self.SECONDS
        return True
