"""/v1/fine_tuning/jobs: OpenAI's objects for jobs, their events and checkpoints."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import InvalidRequest, NotFound
from coserve.service.auth.door import key_of
from coserve.service.bodies import Body, Metadata, parse, unsupported
from coserve.service.files import TRAINING, find_file
from coserve.service.hyperparameters import Hyperparameters, training_config
from coserve.service.ids import new_id, now
from coserve.service.jobs import find_job
from coserve.service.paging import listing, page
from coserve.service.tables import CheckpointRow, EventRow, JobRow

if TYPE_CHECKING:
    from coserve.service.auth.keys import Key
    from coserve.service.service import Service

SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Supervised(Body):
    hyperparameters: Hyperparameters | None = None


class Method(Body):
    type: str
    supervised: Supervised | None = None


class JobBody(Body):
    model: str
    training_file: str
    validation_file: str | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None  # where it was before there were methods
    suffix: str | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    metadata: Metadata | None = None
    integrations: Any = None

    def told(self) -> Hyperparameters:
        """The hyperparameters, wherever they are. Raises `InvalidRequest` with `param`."""
        if self.integrations:
            raise unsupported("integrations")
        if self.suffix is not None and not SUFFIX.fullmatch(self.suffix):
            raise InvalidRequest("'suffix' must be 1 to 64 letters, digits, '.', '_' or '-'.", param="suffix")
        if self.method is not None and self.method.type != "supervised":
            raise unsupported("method.type", f"The method {self.method.type!r}")
        supervised = self.method.supervised if self.method else None
        return (supervised and supervised.hyperparameters) or self.hyperparameters or Hyperparameters()


def job_object(row: JobRow) -> dict[str, Any]:
    done = row.status == "succeeded"
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "estimated_finish": row.estimated_finish,
        "status": row.status,
        "model": row.model,
        "fine_tuned_model": row.fine_tuned_model if done else None,
        "user_provided_suffix": row.suffix,
        "organization_id": "org-coserve",
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "result_files": row.result_files,
        "trained_tokens": row.trained_tokens if done else None,
        "error": row.error,
        "hyperparameters": row.hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": row.hyperparameters}},
        "seed": row.seed,
        "metadata": row.labels,
        "integrations": [],
    }


def event_object(row: EventRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "fine_tuning.job.event",
        "created_at": row.created_at,
        "level": row.level,
        "type": row.type,
        "message": row.message,
        "data": row.data,
    }


def checkpoint_object(row: CheckpointRow, job: JobRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": row.created_at,
        "fine_tuning_job_id": row.job_id,
        "fine_tuned_model_checkpoint": f"{job.fine_tuned_model}:ckpt-step-{row.step}",
        "step_number": row.step,
        "metrics": row.metrics,
    }


async def create_job(http: Request) -> Response:
    service: Service = http.app.state.service
    body = await parse(http, JobBody)
    hyperparameters = body.told().resolve(service.engine.model_config.hidden_size)
    seed = secrets.randbelow(1 << 31) if body.seed is None else body.seed
    training_config(hyperparameters, seed)  # raises what it has against them
    key = key_of(http)
    _check_base_model(service, body.model, key)
    await _check_data(service, body.training_file, key.project.id, "training_file")
    if body.validation_file is not None:
        await _check_data(service, body.validation_file, key.project.id, "validation_file")
    row = JobRow(
        id=new_id("ftjob"),
        project_id=key.project.id,
        key_id=key.id,
        created_at=now(),
        status="validating_files",
        model=body.model,
        suffix=body.suffix,
        seed=seed,
        hyperparameters=hyperparameters,
        training_file=body.training_file,
        validation_file=body.validation_file,
        fine_tuned_model=f"ft:{body.model}:{body.suffix or 'job'}:{secrets.token_hex(4)}",
        trained_tokens=0,
        result_files=[],
        labels=body.metadata,
    )
    await service.jobs.create(row, key)
    return JSONResponse(await _job(service, row.id, key.project.id))


def _check_base_model(service: Service, name: str, key: Key) -> None:
    service.check_model(name, key)
    if name != service.engine.name:
        raise InvalidRequest(
            f"{name!r} is fine-tuned already; fine-tuning starts from {service.engine.name!r}.", param="model"
        )


async def _check_data(service: Service, file_id: str, project: str, param: str) -> None:
    """Raises `InvalidRequest` with `param` unless the file is there and each line of it can be used."""
    try:
        async with service.database.read() as session:
            file = await find_file(session, file_id, project)
    except NotFound as error:
        raise InvalidRequest(error.message, param=param, code="file_not_found") from None
    if file.purpose != TRAINING:
        raise InvalidRequest(f"The file {file_id!r} has the purpose {file.purpose!r}, not {TRAINING!r}.", param=param)
    try:
        await service.jobs.check_data(file_id)
    except InvalidRequest as error:
        error.param = param
        raise
    except FileNotFoundError:
        raise InvalidRequest(f"The content of the file {file_id!r} is gone.", param=param) from None


async def _job(service: Service, job_id: str, project: str) -> dict[str, Any]:
    async with service.database.read() as session:
        return job_object(await find_job(session, job_id, project))


async def retrieve_job(http: Request) -> Response:
    return JSONResponse(await _job(http.app.state.service, http.path_params["job_id"], key_of(http).project.id))


async def list_jobs(http: Request) -> Response:
    service: Service = http.app.state.service
    query = select(JobRow).where(JobRow.project_id == key_of(http).project.id)
    async with service.database.read() as session:
        rows, more = await page(session, query, http, default=20, largest=100)
    return JSONResponse(listing([job_object(row) for row in rows], more=more))


async def list_events(http: Request) -> Response:
    service: Service = http.app.state.service
    async with service.database.read() as session:
        job = await find_job(session, http.path_params["job_id"], key_of(http).project.id)
        query = select(EventRow).where(EventRow.job_id == job.id)
        rows, more = await page(session, query, http, default=20, largest=1000)
    return JSONResponse(listing([event_object(row) for row in rows], more=more))


async def list_checkpoints(http: Request) -> Response:
    service: Service = http.app.state.service
    async with service.database.read() as session:
        job = await find_job(session, http.path_params["job_id"], key_of(http).project.id)
        query = select(CheckpointRow).where(CheckpointRow.job_id == job.id)
        rows, more = await page(session, query, http, default=10, largest=100)
    return JSONResponse(listing([checkpoint_object(row, job) for row in rows], more=more))


def _command(name: str) -> Callable[[Request], Awaitable[Response]]:
    """A route that tells a job something and answers with the job."""

    async def command(http: Request) -> Response:
        jobs = http.app.state.service.jobs
        row: JobRow = await getattr(jobs, name)(http.path_params["job_id"], key_of(http).project.id)
        return JSONResponse(job_object(row))

    command.__name__ = f"{name}_job"
    return command


cancel_job, pause_job, resume_job = _command("cancel"), _command("pause"), _command("resume")
