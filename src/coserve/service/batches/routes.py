"""/v1/batches: OpenAI's objects for batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import InvalidRequest, NotFound
from coserve.planner.quantities import seconds
from coserve.service.auth.door import key_of
from coserve.service.batches.asking import ENDPOINTS
from coserve.service.batches.states import find_batch
from coserve.service.bodies import Body, Metadata, parse
from coserve.service.files import BATCH, find_file
from coserve.service.ids import new_id, now
from coserve.service.paging import listing, page
from coserve.service.tables import BatchRow

if TYPE_CHECKING:
    from coserve.service.batches.batches import Batches
    from coserve.service.service import Service

LONGEST_WINDOW = 24 * 3600
TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


class BatchBody(Body):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Metadata | None = None

    def window(self) -> int:
        """Seconds. Raises `InvalidRequest`."""
        try:
            length = seconds(self.completion_window, "completion_window")
        except InvalidRequest:
            length = 0
        if not 1 <= length <= LONGEST_WINDOW:
            raise InvalidRequest(
                f"'completion_window' is {self.completion_window[:60]!r}; it must be a time from 1s to 24h.",
                param="completion_window",
            )
        return int(length)

    def check_endpoint(self) -> None:
        """Raises `InvalidRequest`."""
        if self.endpoint not in ENDPOINTS:
            raise InvalidRequest(
                f"'endpoint' is {self.endpoint[:60]!r}; it must be one of {', '.join(ENDPOINTS)}.", param="endpoint"
            )


def batch_object(row: BatchRow, batches: Batches) -> dict[str, Any]:
    completed, failed = batches.counts(row)
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        "input_file_id": row.input_file,
        "completion_window": _window(row.window),
        "status": row.status,
        "output_file_id": row.output_file,
        "error_file_id": row.error_file,
        "created_at": row.created_at,
        "expires_at": row.created_at + row.window,
        **{name: row.times.get(name) for name in TIMES},
        "request_counts": {"total": row.total, "completed": completed, "failed": failed},
        "metadata": row.labels,
    }


def _window(length: int) -> str:
    """Seconds as they are written: 24h, 90min, 30s."""
    for size, unit in ((3600, "h"), (60, "min")):
        if length % size == 0:
            return f"{length // size}{unit}"
    return f"{length}s"


async def create_batch(http: Request) -> Response:
    service: Service = http.app.state.service
    body = await parse(http, BatchBody)
    body.check_endpoint()
    window = body.window()
    key = key_of(http)
    await _check_file(service, body.input_file_id, key.project.id)
    row = BatchRow(
        id=new_id("batch"),
        project_id=key.project.id,
        key_id=key.id,
        endpoint=body.endpoint,
        model=service.engine.name,
        input_file=body.input_file_id,
        status="validating",
        window=window,
        created_at=now(),
        times={},
        total=0,
        completed=0,
        failed=0,
        labels=body.metadata,
    )
    reply = batch_object(row, service.batches)
    await service.batches.create(row, key)
    return JSONResponse(reply)


async def _check_file(service: Service, file_id: str, project: str) -> None:
    """Raises `InvalidRequest` unless it is there, for this."""
    try:
        async with service.database.read() as session:
            file = await find_file(session, file_id, project)
    except NotFound as error:
        raise InvalidRequest(error.message, param="input_file_id", code="file_not_found") from None
    if file.purpose != BATCH:
        raise InvalidRequest(
            f"The file {file_id!r} has the purpose {file.purpose!r}, not {BATCH!r}.", param="input_file_id"
        )


async def list_batches(http: Request) -> Response:
    service: Service = http.app.state.service
    query = select(BatchRow).where(BatchRow.project_id == key_of(http).project.id)
    async with service.database.read() as session:
        rows, more = await page(session, query, http, default=20, largest=100)
    return JSONResponse(listing([batch_object(row, service.batches) for row in rows], more=more))


async def retrieve_batch(http: Request) -> Response:
    service: Service = http.app.state.service
    async with service.database.read() as session:
        row = await find_batch(session, http.path_params["batch_id"], key_of(http).project.id)
    return JSONResponse(batch_object(row, service.batches))


async def cancel_batch(http: Request) -> Response:
    service: Service = http.app.state.service
    row = await service.batches.cancel(http.path_params["batch_id"], key_of(http).project.id)
    return JSONResponse(batch_object(row, service.batches))
