"""Watching for what other processes change: the command line, and servers on the same database."""

from __future__ import annotations

import asyncio
import logging

from coserve.service.auth.keys import KeyRing
from coserve.service.database import Database, reason

log = logging.getLogger("coserve.service")
EVERY_SECONDS = 0.5
PATIENCE_SECONDS = 10.0  # with a database that does not answer


async def watch_keys(keys: KeyRing, database: Database) -> None:
    """Keep the ring up to date until cancelled. While the database is away the keys stay as they are known."""
    away = False
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await keys.refresh(database)
        except Exception as error:  # whatever it is: the next look may succeed
            if not away:
                log.error("changes of keys cannot be seen now: the database is away (%s)", reason(error))
            away = True
        else:
            if away:
                log.info("the database is back: changes of keys are seen again")
            away = False
