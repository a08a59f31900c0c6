"""What a job's thread reports, written to the database in the order in which it happened."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.errors import CoserveError, Unavailable
from coserve.service.admission.training import bill
from coserve.service.database import Database, reason
from coserve.service.errors import log_unexpected
from coserve.service.files import adopt_file
from coserve.service.ids import new_id, now
from coserve.service.settings import Settings
from coserve.service.tables import CheckpointRow, EventRow, JobRow
from coserve.service.tiers import Tiers

if TYPE_CHECKING:
    from coserve.training import JobEvent

    Report = tuple[str, JobEvent]  # whose, what

log = logging.getLogger("coserve.service.jobs")

FINAL = ("succeeded", "failed", "cancelled")
ON_THE_WAY = ("validating_files", "queued", "running")
RETRY_SECONDS = 1.0


@dataclass
class Pace:
    """How fast a job goes, from the first step seen in this process."""

    begun: float | None = None  # monotonic seconds
    first_step: int = 0

    def finish_time(self, step: int, total: int) -> int | None:
        """Seconds since 1970; None before there is anything to go by."""
        if self.begun is None:
            self.begun, self.first_step = time.monotonic(), step
        if step <= self.first_step:
            return None
        seconds_per_step = (time.monotonic() - self.begun) / (step - self.first_step)
        return now() + round(seconds_per_step * max(0, total - step))


@dataclass
class Record:
    """The one writer of what jobs report.

    `charge(project_id, nano_dollars)` takes from the project's budget what a job costs, before that is on the bill.
    `on_finished(job_id, stands)` is called after the last report of a job; `stands` is False if its model is
    not to be served: it failed, or was cancelled before its success was heard of.
    """

    database: Database
    settings: Settings
    tiers: Tiers
    charge: Callable[[str, int], Awaitable[None]]
    on_finished: Callable[[str, bool], None]
    _inbox: asyncio.Queue[Report] = field(default_factory=asyncio.Queue)
    _pace: dict[str, Pace] = field(default_factory=dict)
    _charged: set[str] = field(default_factory=set)  # jobs whose end is being written
    last_status: dict[str, str] = field(default_factory=dict)  # what a job does, or would do were it not paused

    def put(self, report: Report) -> None:
        """On the loop's thread."""
        self._inbox.put_nowait(report)

    def forget_pace(self, job_id: str) -> None:
        """After a pause the clock starts anew."""
        self._pace.pop(job_id, None)

    async def run(self) -> None:
        """Write for ever. While the database cannot be written, reports wait and stay in order."""
        while True:
            reports = [await self._inbox.get()]
            while not self._inbox.empty():
                reports.append(self._inbox.get_nowait())
            await self._write_all(reports)

    async def _write_all(self, reports: list[Report]) -> None:
        """Wait for a database that is busy or full; what is wrong with one report harms no other."""
        while True:
            try:
                return await self._commit(reports)
            except Unavailable as error:
                log.warning("cannot record what a job reports (%s); trying again", reason(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:
                if len(reports) > 1:
                    for report in reports:
                        await self._write_all([report])
                    return
                log_unexpected(error)
                [(job_id, event)] = reports
                if event.kind != "finished":
                    return
                lost = CoserveError("The job's results could not be stored.", code="internal_error")
                reports = [(job_id, replace(event, kind="failed", error=lost))]

    async def _commit(self, reports: list[Report]) -> None:
        async with self.database.write() as session:
            over = [end for report in reports if (end := await self._write(session, *report))]
        for job_id, stands in over:
            self._pace.pop(job_id, None)
            self._charged.discard(job_id)
            self.last_status.pop(job_id, None)
            self.on_finished(job_id, stands)

    async def _write(self, session: AsyncSession, job_id: str, event: JobEvent) -> tuple[str, bool] | None:
        """Returns the job and whether its model stands, if this was its end."""
        row = await session.scalar(select(JobRow).where(JobRow.id == job_id).with_for_update())
        if row is None:
            return None
        if row.status in FINAL:  # it was cancelled meanwhile; what comes late changes nothing
            return (job_id, False) if event.kind in ("finished", "failed") else None
        row.trained_tokens = max(row.trained_tokens, event.trained_tokens)
        match event.kind:
            case "status":
                self._status(session, row, event)
            case "message":
                add_event(session, job_id, event.message, level=event.level)
            case "metrics":
                self._metrics(session, row, event)
            case "checkpoint":
                await _checkpoint(session, row, event)
            case "finished":
                await self._finish(session, row, event)
                await self._charge(row, await bill(session, self.tiers, row, "completed"))
                return job_id, True
            case "failed":
                fail(session, row, event.error or CoserveError(event.message or "The training failed."))
                await bill(session, self.tiers, row, "failed")
                return job_id, False
        return None

    async def _charge(self, row: JobRow, cost: int) -> None:
        """Once, however often the transaction has to be tried."""
        if row.id not in self._charged:
            self._charged.add(row.id)
            await self.charge(row.project_id, cost)

    def _status(self, session: AsyncSession, row: JobRow, event: JobEvent) -> None:
        if event.status not in ON_THE_WAY:  # ends come as "finished" and "failed", with all they bring
            return
        self.last_status[row.id] = event.status
        if row.status != "paused":
            row.status = event.status
        add_event(session, row.id, event.message or f"The job is {event.status.replace('_', ' ')}.")

    def _metrics(self, session: AsyncSession, row: JobRow, event: JobEvent) -> None:
        if row.status == "queued":  # another server, which does not know better, has resumed it
            row.status = self.last_status.get(row.id, row.status)
        finish = self._pace.setdefault(row.id, Pace()).finish_time(event.step, event.total_steps)
        if finish is not None:
            row.estimated_finish = finish
        metrics = finite(event.metrics)
        loss = metrics.get("train_loss")
        message = f"Step {event.step}/{event.total_steps}"
        message += f": training loss={loss:.4g}" if loss is not None else ""
        data = {
            "step": event.step,
            "total_steps": event.total_steps,
            "trained_tokens": event.trained_tokens,
            **metrics,
        }
        add_event(session, row.id, event.message or message, kind="metrics", data=data)

    async def _finish(self, session: AsyncSession, row: JobRow, event: JobEvent) -> None:
        adopted = []
        for path in event.result_files:
            file = await adopt_file(session, self.settings.files_directory, path, row.project_id)
            adopted.append(file.id)
        row.result_files = adopted
        row.adapter_path = _below(self.settings.directory, event.adapter_path)
        row.status, row.finished_at, row.estimated_finish = "succeeded", now(), None
        add_event(session, row.id, f"New fine-tuned model created: {row.fine_tuned_model}")
        add_event(session, row.id, "The job has been successfully completed")


def add_event(
    session: AsyncSession,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    session.add(
        EventRow(
            id=new_id("ftevent"),
            job_id=job_id,
            created_at=now(),
            level=level,
            type=kind,
            message=message,
            data=data or {},
        )
    )


def fail(session: AsyncSession, row: JobRow, error: CoserveError) -> None:
    row.status, row.finished_at, row.estimated_finish = "failed", now(), None
    row.error = {"code": error.code or error.type, "message": error.message, "param": error.param}
    add_event(session, row.id, f"The job failed: {error.message}", level="error")


async def _checkpoint(session: AsyncSession, row: JobRow, event: JobEvent) -> None:
    """One for each step: a resumed job may pass the same step again."""
    same = (CheckpointRow.job_id == row.id, CheckpointRow.step == event.step)
    known = await session.scalar(select(CheckpointRow).where(*same))
    metrics = {"step": event.step, **finite(event.metrics)}
    if known is not None:
        known.metrics = metrics
        return
    session.add(CheckpointRow(id=new_id("ftckpt"), job_id=row.id, created_at=now(), step=event.step, metrics=metrics))
    add_event(session, row.id, event.message or f"Checkpoint created at step {event.step}")


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN: a figure that is none is left out."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _below(home: Path, path: Path | None) -> str | None:
    """Relative where possible, so that a home directory may be moved."""
    if path is None:
        return None
    path = Path(path).resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
