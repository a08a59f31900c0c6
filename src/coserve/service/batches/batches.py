"""All batches of one home directory: those that are not over are worked on, also after a restart."""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import select

from coserve.service.admission.allowances import check_batch
from coserve.service.batches import states
from coserve.service.batches.run import Run
from coserve.service.batches.turns import Turns
from coserve.service.errors import log_unexpected
from coserve.service.tables import BatchRow
from coserve.service.tasks import cancel, repeat

if TYPE_CHECKING:
    from coserve.service.auth.keys import Key
    from coserve.service.service import Service

log = logging.getLogger("coserve.service.batches")

RETRY_SECONDS = 5.0
FOLLOW_SECONDS = 1.0
"""Between two looks for cancellations by other servers."""


class Batches:
    """Open it when all that answers requests is there; close it before."""

    def __init__(self, service: Service):
        self._service = service
        self._turns = Turns(service.settings.batch_requests)
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Go on with what a kill or a restart cut off, and remove what finished batches left.

        A batch whose directory is not here is another server's on the same database.
        """
        async with self._service.database.read() as session:
            query = select(BatchRow).where(BatchRow.status.in_(states.UNFINISHED)).order_by(BatchRow.seq)
            rows = list(await session.scalars(query))
        here = {directory.name for directory in self._service.settings.batches_directory.iterdir()}
        for batch_id in here - {row.id for row in rows}:
            self._remove(batch_id)
        for row in rows:
            if row.id in here:
                self._start(row)
        complaint = "cancellations by other servers cannot be seen now"
        self._following = asyncio.create_task(repeat(FOLLOW_SECONDS, self._follow, log, complaint))

    async def close(self) -> None:
        """Stop. What runs now is run again after the next start; what has ended is not.

        The tasks are asked and not cancelled: a transaction that is broken off may keep its lock on the database.
        """
        if self._following is not None:
            await cancel(self._following)
        self._closing.set()
        for run in self._runs.values():
            run.stop()
        await asyncio.gather(*self._tasks)

    async def create(self, row: BatchRow, key: Key) -> None:
        """Store a new batch and start it. Raises `RateLimited` if the key's tier allows no more."""
        async with self._service.database.write() as session:
            await check_batch(session, self._service.tiers, key)
            (self._service.settings.batches_directory / row.id).mkdir(mode=0o700)
            session.add(row)
        self._start(row)

    def _start(self, row: BatchRow) -> None:
        self._runs[row.id] = Run(self._service, self._turns, row)
        task = asyncio.get_running_loop().create_task(self._work(row.id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, batch_id: str) -> None:
        """A full disk or a busy database ends no batch: it is worked on again, from what is stored."""
        while not self._closing.is_set():
            try:
                over = await self._runs[batch_id].work()
            except Exception as error:
                log_unexpected(error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), RETRY_SECONDS)
                continue
            if over:
                del self._runs[batch_id]
                await asyncio.to_thread(self._remove, batch_id)
            return

    def _remove(self, batch_id: str) -> None:
        """Its results are files of their own now."""
        shutil.rmtree(self._service.settings.batches_directory / batch_id, ignore_errors=True)

    async def cancel(self, batch_id: str, project: str) -> BatchRow:
        """Raises: `NotFound`; `Conflict` if it is over, or nearly."""
        row = await states.cancel(self._service.database, batch_id, project)
        if (run := self._runs.get(batch_id)) is not None:
            run.cancel()
        return row

    async def _follow(self) -> None:
        """Cancel what another server on the database was asked to."""
        if not self._runs:
            return
        query = select(BatchRow.id).where(BatchRow.id.in_(list(self._runs)), BatchRow.status == "cancelling")
        async with self._service.database.read() as session:
            cancelled = list(await session.scalars(query))
        for batch_id in cancelled:
            if (run := self._runs.get(batch_id)) is not None:
                run.cancel()

    def counts(self, row: BatchRow) -> tuple[int, int]:
        """How many of its requests are completed and failed at this moment."""
        run = self._runs.get(row.id)
        return (run and run.counts) or (row.completed, row.failed)
