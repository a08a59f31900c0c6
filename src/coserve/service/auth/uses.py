"""When each key was last used: noted in memory, written now and then."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import bindparam, or_, update

from coserve.service.database import Database, reason
from coserve.service.ids import now
from coserve.service.tables import KeyRow
from coserve.service.tasks import cancel, repeat

log = logging.getLogger("coserve.service")
WRITE_SECONDS = 60.0
COMPLAINT = "when keys were last used cannot be written now"


class KeyUses:
    """One write a minute, however many requests. What a kill or an absent database loses is at most these times."""

    def __init__(self, database: Database):
        self._database = database
        self._used: dict[str, int] = {}  # by the key's id; not yet written
        self._busy = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    def note(self, key_id: str) -> None:
        """It is used now. An id that is no stored key's has no effect."""
        self._used[key_id] = now()

    async def open(self) -> None:
        self._writing = asyncio.create_task(repeat(WRITE_SECONDS, self.write, log, COMPLAINT))

    async def close(self) -> None:
        if self._writing is not None:
            async with self._busy:  # never in the middle of a transaction
                self._writing.cancel()
            await cancel(self._writing)
        try:
            await self.write()
        except Exception as error:
            log.warning("%s (%s)", COMPLAINT, reason(error))

    async def write(self) -> None:
        async with self._busy:
            used, self._used = self._used, {}
            if not used:
                return
            try:
                await self._store(used)
            except BaseException:
                self._used = {**used, **self._used}
                raise

    async def _store(self, used: dict[str, int]) -> None:
        """The latest time stays, whichever server knows it."""
        later = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at < bindparam("at"))
        statement = update(KeyRow).where(KeyRow.id == bindparam("key"), later).values(last_used_at=bindparam("at"))
        async with self._database.write() as session:
            connection = await session.connection()  # which takes many at once, as the session does not
            await connection.execute(statement, [{"key": key, "at": at} for key, at in used.items()])
