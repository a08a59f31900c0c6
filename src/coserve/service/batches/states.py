"""A batch's states, and each way from one to the next, as OpenAI names them: one transaction a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.errors import Conflict, NotFound
from coserve.service.database import Database
from coserve.service.ids import now
from coserve.service.tables import BatchRow, FileRow

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
OUTPUT = "batch_output"
"""The purpose of both result files."""


@dataclass(frozen=True)
class Files:
    """What is left of a batch: its result files, None for one that would be empty, and how many lines they count."""

    output: Path | None
    error: Path | None
    completed: int
    failed: int  # those that were never answered are not among them


async def find_batch(
    session: AsyncSession, batch_id: str, project: str | None = None, *, change: bool = False
) -> BatchRow:
    """To `change` it, nobody else does until the transaction ends. Raises `NotFound`, also for another project's than
    `project`.
    """
    query = select(BatchRow).where(BatchRow.id == batch_id)
    row = await session.scalar(query.with_for_update() if change else query)
    if row is None or project not in (None, row.project_id):
        raise NotFound(f"There is no batch {batch_id!r}.")
    return row


async def begin(database: Database, batch_id: str, total: int) -> BatchRow:
    """validating -> in_progress, unless it is being cancelled."""
    async with database.write() as session:
        row = await find_batch(session, batch_id, change=True)
        row.total = total
        if row.status == "validating":
            _enter(row, "in_progress")
    return row


async def fail(database: Database, batch_id: str, mistakes: list[dict[str, Any]]) -> BatchRow:
    """-> failed: not one of its requests has been run, or its input is lost."""
    async with database.write() as session:
        row = await find_batch(session, batch_id, change=True)
        row.errors = mistakes
        _enter(row, "failed")
    return row


async def cancel(database: Database, batch_id: str, project: str) -> BatchRow:
    """-> cancelling. Raises `NotFound`; `Conflict` if it is over, or nearly."""
    async with database.write() as session:
        row = await find_batch(session, batch_id, project, change=True)
        if row.status in ("validating", "in_progress"):
            _enter(row, "cancelling")
        elif row.status != "cancelling":
            raise Conflict(f"The batch {batch_id!r} cannot be cancelled: it is {row.status}.")
    return row


async def finalize(database: Database, batch_id: str) -> BatchRow:
    """in_progress -> finalizing: from here on it cannot be cancelled."""
    async with database.write() as session:
        row = await find_batch(session, batch_id, change=True)
        if row.status == "in_progress":
            _enter(row, "finalizing")
    return row


async def end(database: Database, batch_id: str, files: Files, directory: Path) -> None:
    """-> completed, expired or cancelled, with its result files in the files' `directory`: all of it, or nothing."""
    from coserve.service.files import adopt_file

    async def adopted(session: AsyncSession, path: Path | None) -> str | None:
        if path is None:
            return None
        file: FileRow = await adopt_file(session, directory, path, row.project_id, OUTPUT)
        return file.id

    async with database.write() as session:
        row = await find_batch(session, batch_id, change=True)
        row.output_file = await adopted(session, files.output)
        row.error_file = await adopted(session, files.error)
        row.completed, row.failed = files.completed, files.failed
        whole = files.completed + files.failed == row.total
        _enter(row, "cancelled" if row.status == "cancelling" else "completed" if whole else "expired")


def _enter(row: BatchRow, status: str) -> None:
    row.status = status
    row.times = {**row.times, f"{status}_at": now()}  # a new one: changes within are not seen
