"""What every store of limits promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coserve.service.limits.bucket import Draw, Level, Limit, Refusal

LEASE_SECONDS = 60.0
"""After this a killed process's requests no longer count. Those of one that lives are renewed (`RenewedStore`)."""


class LimitStore(Protocol):
    """Buckets and leases by key. Reserve an estimate, do the work, settle the difference.

    Each call is atomic. A call that is cancelled leaves nothing behind: what it reserved is given back. Every call
    raises `Unavailable` if the server behind the store cannot be reached; it never waits longer than some seconds.
    """

    async def open(self) -> None:
        """Connect. To be called once, on the loop that will use the store."""

    async def close(self) -> None:
        """Disconnect, when what was begun has ended."""

    async def reserve(self, draws: Sequence[Draw]) -> list[Level] | Refusal:
        """Take all amounts (0 or more), or nothing at all. The levels are in the draws' order."""

    async def settle(self, corrections: Sequence[Draw]) -> list[Level]:
        """Take more (amount > 0; may lead into debt) or give back (< 0; never above the capacity)."""

    async def levels(self, limits: Sequence[Limit]) -> list[Level]: ...

    async def preset(self, limit: Limit, used: float) -> None:
        """Start a bucket that nobody has drawn from as used so far. No effect on one that is not full."""

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        """Hold one of `capacity` places, unless all are held by others. After `seconds` it is free again by itself."""

    async def renew(self, key: str, lease: str, seconds: float) -> bool:
        """Hold on for `seconds` from now. False if the place is lost already."""

    async def release(self, key: str, lease: str) -> None:
        """Free the place at once. No effect if it is not held."""
