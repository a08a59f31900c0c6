"""Complaints that repeat: told at once, then once a minute."""

from __future__ import annotations

import logging
import time

SECONDS = 60.0


class Seldom:
    """Logs errors of one kind, at most one line a minute, each with how many were left out before it."""

    def __init__(self, log: logging.Logger, level: int = logging.ERROR):
        self._log = log
        self._level = level
        self._again_at = 0.0  # monotonic seconds
        self._left_out = 0

    def say(self, text: str, *values: object) -> None:
        now = time.monotonic()
        if now < self._again_at:
            self._left_out += 1
            return
        if self._left_out:
            text, values = text + " (%d more like this)", (*values, self._left_out)
        self._again_at, self._left_out = now + SECONDS, 0
        self._log.log(self._level, text, *values)

    def reset(self) -> None:
        """It is over: the next complaint is told at once."""
        self._again_at, self._left_out = 0.0, 0
