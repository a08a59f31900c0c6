"""/v1/files: training data and batches in, results out. The bytes are in `home/files`, the rest in the database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from coserve.errors import Conflict, InvalidRequest, NotFound
from coserve.service.admission.allowances import check_file
from coserve.service.admission.refusals import RateLimited
from coserve.service.auth.door import key_of
from coserve.service.batches import states
from coserve.service.ids import new_id, now
from coserve.service.paging import listing, page
from coserve.service.tables import BatchRow, FileRow, JobRow
from coserve.service.uploads import receive_form

if TYPE_CHECKING:
    from coserve.service.service import Service

TRAINING = "fine-tune"
RESULTS = "fine-tune-results"
BATCH = "batch"
UPLOADED = (TRAINING, BATCH)
UNFINISHED = ("validating_files", "queued", "running", "paused")


def file_object(row: FileRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "expires_at": None,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


async def find_file(session: AsyncSession, file_id: str, project: str, *, param: str | None = None) -> FileRow:
    """Raises `NotFound`, also for another project's."""
    query = select(FileRow).where(FileRow.id == file_id, FileRow.project_id == project)
    row = await session.scalar(query) if "\x00" not in file_id else None  # which PostgreSQL has no way to say
    if row is None:
        raise NotFound(f"There is no file {file_id!r}.", param=param)
    return row


async def create_file(http: Request) -> Response:
    service: Service = http.app.state.service
    file_id = new_id("file")
    path = service.settings.files_directory / file_id
    draft = path.with_suffix(".part")
    key = key_of(http)
    form = await receive_form(http, draft, service.settings.max_file_bytes)
    try:
        purpose = _check_form(form.fields.get("purpose"), form.size)
        draft.replace(path)
    except BaseException:
        form.discard()
        raise
    row = FileRow(
        id=file_id,
        filename=form.filename or "file",
        purpose=purpose,
        bytes=form.size,
        created_at=now(),
        project_id=key.project.id,
    )
    try:
        async with service.database.write() as session:
            await check_file(session, service.tiers, key, row.bytes)
            session.add(row)
    except RateLimited:
        path.unlink(missing_ok=True)
        raise
    return JSONResponse(file_object(row))


def _check_form(purpose: str | None, size: int) -> str:
    """The purpose. Raises `InvalidRequest`."""
    if purpose is None:
        raise InvalidRequest("'purpose' is required.", param="purpose", code="missing_required_parameter")
    if purpose not in UPLOADED:
        known = " and ".join(map(repr, UPLOADED))
        raise InvalidRequest(f"'purpose' is {purpose!r}; {known} are supported.", param="purpose")
    if size == 0:
        raise InvalidRequest("The file is empty.", param="file")
    return purpose


async def list_files(http: Request) -> Response:
    service: Service = http.app.state.service
    query = select(FileRow).where(FileRow.project_id == key_of(http).project.id)
    if purpose := http.query_params.get("purpose"):
        query = query.where(FileRow.purpose == purpose)
    async with service.database.read() as session:
        rows, more = await page(session, query, http, default=10_000, largest=10_000)
    return JSONResponse(listing([file_object(row) for row in rows], more=more))


async def retrieve_file(http: Request) -> Response:
    service: Service = http.app.state.service
    async with service.database.read() as session:
        return JSONResponse(file_object(await find_file(session, http.path_params["file_id"], key_of(http).project.id)))


async def file_content(http: Request) -> Response:
    service: Service = http.app.state.service
    async with service.database.read() as session:
        row = await find_file(session, http.path_params["file_id"], key_of(http).project.id)
    path = service.settings.files_directory / row.id
    if not path.is_file():
        raise NotFound(f"The content of the file {row.id!r} is no longer there.")
    return FileResponse(path, media_type="application/octet-stream", filename=row.filename)


async def delete_file(http: Request) -> Response:
    """A file that a job or a batch still needs stays: it may have to be read again after a restart."""
    service: Service = http.app.state.service
    async with service.database.write() as session:
        row = await find_file(session, http.path_params["file_id"], key_of(http).project.id)
        uses = or_(JobRow.training_file == row.id, JobRow.validation_file == row.id)
        job = await session.scalar(select(JobRow.id).where(uses, JobRow.status.in_(UNFINISHED)))
        if job is not None:
            raise Conflict(f"The file {row.id!r} is in use by the job {job!r}.", code="file_in_use")
        batch = await session.scalar(
            select(BatchRow.id).where(BatchRow.input_file == row.id, BatchRow.status.in_(states.UNFINISHED))
        )
        if batch is not None:
            raise Conflict(f"The file {row.id!r} is in use by the batch {batch!r}.", code="file_in_use")
        await session.delete(row)
    (service.settings.files_directory / row.id).unlink(missing_ok=True)
    return JSONResponse({"id": row.id, "object": "file", "deleted": True})


async def adopt_file(
    session: AsyncSession, directory: Path, source: Path, project: str, purpose: str = RESULTS
) -> FileRow:
    """Make a result of a job or a batch a file of its own: it outlives the directory that it is in.

    Raises: `OSError` if it cannot be read.
    """
    file_id = new_id("file")
    await asyncio.to_thread(_link_or_copy, source, directory / file_id)
    size = (directory / file_id).stat().st_size
    row = FileRow(id=file_id, filename=source.name, purpose=purpose, bytes=size, created_at=now(), project_id=project)
    session.add(row)
    return row


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        draft = target.with_suffix(".part")
        shutil.copyfile(source, draft)
        draft.replace(target)


def sweep(directory: Path) -> None:
    """Remove what uploads left that a killed server was receiving."""
    for draft in directory.glob("*.part"):
        with contextlib.suppress(OSError):
            draft.unlink()
