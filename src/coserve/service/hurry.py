"""Ending what is waited for."""

from __future__ import annotations

import asyncio


def hurry(timeout: asyncio.Timeout | None) -> None:
    """Let the block of a timeout end now, unless it is ending already; no effect without one."""
    if timeout is not None and not timeout.expired():
        timeout.reschedule(0)
