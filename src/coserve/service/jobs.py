"""The runner of fine-tuning jobs: ties the trainer's `TrainingJob`s to the database, also across restarts."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.errors import Conflict, CoserveError, NotFound
from coserve.service.admission.training import bill, check_allowance
from coserve.service.database import Database
from coserve.service.errors import log_unexpected
from coserve.service.files import sweep
from coserve.service.hyperparameters import training_config
from coserve.service.ids import now
from coserve.service.job_record import FINAL, ON_THE_WAY, Record, add_event, fail
from coserve.service.mailbox import Mailbox
from coserve.service.settings import Settings
from coserve.service.tables import JobRow
from coserve.service.tasks import cancel, repeat
from coserve.service.tiers import Tiers

if TYPE_CHECKING:
    from coserve.engine import Engine
    from coserve.service.auth.keys import Key
    from coserve.training import JobEvent, JobSpec, TrainingJob

log = logging.getLogger("coserve.service.jobs")

FOLLOW_SECONDS = 1.0
"""Between two looks at what other servers on the database were asked for."""


@dataclass(frozen=True)
class Training:
    """What the runner needs of the trainer; a test hands in another."""

    job: Callable[[Engine, JobSpec, Callable[[JobEvent], None]], TrainingJob]
    read_examples: Callable[[Path], Any]

    @classmethod
    def real(cls) -> Training:
        from coserve.training import TrainingJob, read_examples

        return cls(TrainingJob, read_examples)


async def find_job(session: AsyncSession, job_id: str, project: str | None = None, *, change: bool = False) -> JobRow:
    """To `change` it, nobody else does until the transaction ends. Raises `NotFound`, also for another project's than
    `project`.
    """
    query = select(JobRow).where(JobRow.id == job_id)
    row = await session.scalar(query.with_for_update() if change else query)
    if row is None or project not in (None, row.project_id):
        raise NotFound(f"There is no fine-tuning job {job_id!r}.")
    return row


class Jobs:
    """All jobs of one home directory, of which those that go on are alive in the trainer."""

    def __init__(
        self,
        engine: Engine,
        database: Database,
        settings: Settings,
        mailbox: Mailbox,
        training: Training,
        tiers: Tiers,
        charge: Callable[[str, int], Awaitable[None]],
    ):
        self._engine = engine
        self._database = database
        self._settings = settings
        self._mailbox = mailbox
        self._training = training
        self._alive: dict[str, TrainingJob] = {}
        self._paused: set[str] = set()  # of those
        self._commands = asyncio.Lock()  # one at a time, so that none acts on what another has changed
        self._following: asyncio.Task[None] | None = None
        self._owners: dict[str, str] = {}
        self._tiers = tiers
        self._record = Record(database, settings, tiers, charge, self._over)
        self._writer: asyncio.Task[None] | None = None
        self._withdrawals: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self) -> None:
        """Serve the models of earlier jobs again, and go on with those that a kill or a restart cut off.

        A job whose directory is not here is another server's on the same database.
        """
        sweep(self._settings.files_directory)
        self._writer = asyncio.create_task(self._record.run())
        async with self._database.read() as session:
            rows = list(await session.scalars(select(JobRow).order_by(JobRow.seq)))
        self._owners = {row.fine_tuned_model: row.project_id for row in rows}
        here = {directory.name for directory in self._settings.jobs_directory.iterdir()}
        for row in rows:
            if row.id not in here:
                continue
            if row.model != self._engine.name:
                if row.status in ON_THE_WAY:
                    log.warning("the job %s waits: its model %s is not served now", row.id, row.model)
            elif row.status == "succeeded" and row.model_deleted_at is None:
                await self._serve(row)
            elif row.status in ON_THE_WAY:
                await self._start(row)
        complaint = "what other servers ask of jobs cannot be seen now"
        self._following = asyncio.create_task(repeat(FOLLOW_SECONDS, self._follow, log, complaint))

    async def close(self) -> None:
        """Stop listening. Running jobs stay as they are in the database: the next start resumes them."""
        self._closed = True
        if self._following is not None:
            await cancel(self._following)
        if self._writer is not None:
            await cancel(self._writer)

    async def _serve(self, row: JobRow) -> None:
        path = self._settings.directory / (row.adapter_path or "")
        try:
            if row.fine_tuned_model not in self._engine.models():
                await asyncio.to_thread(self._engine.load_adapter, row.fine_tuned_model, path)
        except (CoserveError, OSError) as error:
            log.warning("the model %s cannot be served: %s", row.fine_tuned_model, error)

    def spec(self, row: JobRow) -> JobSpec:
        """What the trainer is to do; the same for each start of one job."""
        from coserve.training import JobSpec

        files = self._settings.files_directory
        return JobSpec(
            id=row.id,
            model=row.model,
            training_file=files / row.training_file,
            validation_file=files / row.validation_file if row.validation_file else None,
            config=training_config(row.hyperparameters, row.seed),
            adapter_name=row.fine_tuned_model,
            directory=self._settings.jobs_directory / row.id,
        )

    async def check_data(self, file_id: str) -> None:
        """Raises `DataError` with the line for data that cannot be used."""
        await asyncio.to_thread(self._training.read_examples, self._settings.files_directory / file_id)

    async def create(self, row: JobRow, key: Key) -> None:
        """Store a new job and start it. Raises `RateLimited` if the key's tier allows no more."""
        async with self._database.write() as session:
            await check_allowance(session, self._tiers, key)
            (self._settings.jobs_directory / row.id).mkdir()
            session.add(row)
            await session.flush()  # events refer to it
            add_event(session, row.id, f"Created fine-tuning job: {row.id}")
        self._owners[row.fine_tuned_model] = row.project_id
        await self._start(row)

    async def _start(self, row: JobRow) -> None:
        """Hand a job to the trainer; if that is refused, the job has failed."""
        try:
            spec = self.spec(row)
            spec.directory.mkdir(parents=True, exist_ok=True)
            job = self._training.job(self._engine, spec, partial(self._hear, row.id))
            self._alive[row.id] = job
            job.start()
        except Exception as error:
            self._alive.pop(row.id, None)
            if not isinstance(error, CoserveError):
                log_unexpected(error)
                error = CoserveError("The job could not be started.", code="internal_error")
            async with self._database.write() as session:
                stored = await find_job(session, row.id, change=True)
                if stored.status not in FINAL:  # nobody has cancelled it meanwhile
                    fail(session, stored, error)
                    await bill(session, self._tiers, stored, "failed")

    def _hear(self, job_id: str, event: JobEvent) -> None:
        """On the trainer's thread."""
        if not self._closed:
            self._mailbox.post(self._record.put, (job_id, event))

    def _over(self, job_id: str, stands: bool) -> None:
        """After a job's last report. A model that came after a cancellation, or despite a failure, goes."""
        self._forget(job_id)
        if not stands:
            task = asyncio.get_running_loop().create_task(self._withdraw(job_id))
            self._withdrawals.add(task)  # the loop itself would forget it
            task.add_done_callback(self._withdrawals.discard)

    async def _withdraw(self, job_id: str) -> None:
        async with self._database.read() as session:
            row = await find_job(session, job_id)
        if row.fine_tuned_model in self._engine.models():
            await asyncio.to_thread(self._engine.unload_adapter, row.fine_tuned_model)

    def _forget(self, job_id: str) -> TrainingJob | None:
        self._paused.discard(job_id)
        return self._alive.pop(job_id, None)

    async def _follow(self) -> None:
        """Do with the jobs that are alive here what other servers on the database have been asked for."""
        if not self._alive:
            return
        async with self._commands:
            query = select(JobRow.id, JobRow.status).where(JobRow.id.in_(list(self._alive)))
            async with self._database.read() as session:
                found = (await session.execute(query)).all()
            for job_id, status in found:
                self._obey(job_id, status)

    def _obey(self, job_id: str, status: str) -> None:
        """Let a job do what its status says; no effect if it is not alive here, or does so."""
        job = self._alive.get(job_id)
        if job is None:
            return
        if status == "cancelled":
            self._forget(job_id)
            job.cancel()
        elif status == "paused" and job_id not in self._paused:
            self._paused.add(job_id)
            job.pause()
        elif status in ON_THE_WAY and job_id in self._paused:
            self._paused.discard(job_id)
            self._record.forget_pace(job_id)
            job.resume()

    async def cancel(self, job_id: str, project: str) -> JobRow:
        """Raises: `NotFound`; `Conflict` if it is over."""
        async with self._commands:
            async with self._database.write() as session:
                row = await find_job(session, job_id, project, change=True)
                if row.status in FINAL:
                    raise Conflict(f"The job {job_id!r} has already {_ended(row.status)}.")
                row.status, row.finished_at, row.estimated_finish = "cancelled", now(), None
                await bill(session, self._tiers, row, "cancelled")
                add_event(session, job_id, "The job was cancelled")
            self._obey(job_id, row.status)
        return row

    async def pause(self, job_id: str, project: str) -> JobRow:
        """Raises: `NotFound`; `Conflict` if it does not go on."""
        async with self._commands:
            async with self._database.write() as session:
                row = await find_job(session, job_id, project, change=True)
                if row.status not in ON_THE_WAY:
                    raise Conflict(f"The job {job_id!r} cannot be paused: it is {row.status}.")
                self._record.last_status[job_id] = row.status
                row.status, row.estimated_finish = "paused", None
                add_event(session, job_id, "The job was paused")
            self._obey(job_id, row.status)
        return row

    async def resume(self, job_id: str, project: str) -> JobRow:
        """Raises: `NotFound`; `Conflict` if it is not paused."""
        async with self._commands:
            async with self._database.write() as session:
                row = await find_job(session, job_id, project, change=True)
                if row.status != "paused":
                    raise Conflict(f"The job {job_id!r} cannot be resumed: it is {row.status}.")
                row.status = self._record.last_status.get(job_id, "queued") if job_id in self._alive else "queued"
                add_event(session, job_id, "The job was resumed")
            if job_id in self._alive:
                self._obey(job_id, row.status)
            elif row.model == self._engine.name and (self._settings.jobs_directory / job_id).is_dir():
                await self._start(row)  # it was paused in an earlier life of the server; without a directory, another's
        return row

    def owner(self, model: str) -> str | None:
        """The project whose job made a model that is served or will be; None if no job did."""
        return self._owners.get(model)

    async def delete_model(self, name: str, project: str) -> None:
        """Stop serving a fine-tuned model and remove its weights. Result files stay.

        Raises: `NotFound` if no job of the project made it.
        """
        async with self._database.write() as session:
            row = await session.scalar(
                select(JobRow).where(
                    JobRow.fine_tuned_model == name,
                    JobRow.project_id == project,
                    JobRow.status == "succeeded",
                    JobRow.model_deleted_at.is_(None),
                )
            )
            if row is None:
                raise NotFound(f"The model {name!r} does not exist.", code="model_not_found", param="model")
            row.model_deleted_at = now()
        if name in self._engine.models():
            await asyncio.to_thread(self._engine.unload_adapter, name)
        await asyncio.to_thread(shutil.rmtree, self._settings.jobs_directory / row.id, ignore_errors=True)


def _ended(status: str) -> str:
    return "been cancelled" if status == "cancelled" else status
