"""One batch at work: from wherever an earlier life of the server left it, to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from coserve.errors import AuthenticationError
from coserve.service.admission.refusals import QuotaExceeded
from coserve.service.auth.keys import Key
from coserve.service.batches import states
from coserve.service.batches.asking import BUSY_SECONDS, ask, pause
from coserve.service.batches.mistakes import Mistake, Report, Rules, check
from coserve.service.batches.outputs import CANCELLED, EXPIRED, Place, answered, write_files
from coserve.service.batches.requests import Asked, Requests
from coserve.service.batches.results import Results
from coserve.service.batches.states import Files
from coserve.service.batches.turns import Turns
from coserve.service.compact import dumps
from coserve.service.errors import as_coserve_error, envelope
from coserve.service.hurry import hurry
from coserve.service.tables import BatchRow

if TYPE_CHECKING:
    from coserve.service.service import Service

log = logging.getLogger("coserve.service.batches")


class InputLost(Exception):
    """The input file is not there any more."""


class Run:
    """To be worked on by one task: `work`, again if it raised. `cancel` and `stop` may come at any time."""

    def __init__(self, service: Service, turns: Turns, row: BatchRow):
        self._service = service
        self._turns = turns
        self._row = row
        self._input = service.settings.files_directory / row.input_file
        self._directory = service.settings.batches_directory / row.id
        self._results: Results | None = None  # while requests run
        self._interrupted = self._stopped = False
        self._patience: asyncio.Timeout | None = None  # while requests run
        self._spent: QuotaExceeded | None = None  # the budget: what is left of the batch ends with this

    @property
    def counts(self) -> tuple[int, int] | None:
        """Requests completed and failed so far; None while none run."""
        return (self._results.completed, self._results.failed) if self._results else None

    def cancel(self) -> None:
        """Break off what runs. The batch is in the state cancelling already."""
        self._interrupt()

    def stop(self) -> None:
        """Break off what runs, and leave the batch to the next start of the server."""
        self._stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        self._interrupted = True
        hurry(self._patience)

    async def work(self) -> bool:
        """Whether the batch is over; it is not after `stop`. What raises leaves it to be worked on again."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with self._service.database.read() as session:
            self._row = await states.find_batch(session, self._row.id)
        try:
            if self._row.status == "validating":
                await self._validate()
            if self._row.status == "in_progress":
                await self._run_until_interrupted()
            if self._row.status in states.UNFINISHED and not self._stopped:
                await self._end()
        except InputLost:
            lost = Mistake("input_file_lost", f"The content of the file {self._row.input_file!r} is gone.")
            await self._fail([lost])
        return not self._stopped

    async def _validate(self) -> None:
        async with self._turns.checking:
            if self._stopped:
                return
            report = await self._check()
        if report.mistakes:
            await self._fail(report.mistakes)
        else:
            self._row = await states.begin(self._service.database, self._row.id, report.total)

    async def _check(self) -> Report:
        key = self._service.keys.of_id(self._row.key_id)
        if key is None:
            return Report(
                0, [Mistake("invalid_api_key", "The key that the batch was made with is not valid any more.")]
            )
        tiers = self._service.tiers
        rules = Rules(
            self._row.endpoint,
            frozenset(self._service.models(key)),
            tiers.batch_terms(key.tier or tiers.highest).goals.batch.requests,
            self._service.settings.max_body_bytes,
        )
        try:
            return await asyncio.to_thread(check, self._input, rules)
        except FileNotFoundError:
            raise InputLost from None

    async def _fail(self, mistakes: list[Mistake]) -> None:
        told = [mistake.as_dict() for mistake in mistakes]
        self._row = await states.fail(self._service.database, self._row.id, told)

    async def _run_until_interrupted(self) -> None:
        """Returns when every request has ended, or the window is over, or with `cancel` or `stop`."""
        left = self._row.created_at + self._row.window - time.time()
        try:
            async with asyncio.timeout(0 if self._interrupted else left) as self._patience:
                await self._model_served()
                async with self._turns.batch(self._row.project_id):
                    await self._run_all()
        except TimeoutError:
            pass
        finally:
            self._patience = None

    async def _model_served(self) -> None:
        """A server that was started again with another model does not run the batch: a later start may."""
        if self._row.model != self._service.engine.name:
            log.warning("the batch %s waits: its model %s is not served now", self._row.id, self._row.model)
            await asyncio.Event().wait()

    async def _run_all(self) -> None:
        requests = await asyncio.to_thread(self._requests)
        try:
            with Results(self._results_path, len(requests)) as self._results:
                pending = (index for index in range(len(requests)) if index not in self._results)
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._service.settings.batch_requests):
                        group.create_task(self._answer_each(pending, requests, self._results))
        finally:
            self._results = None

    @property
    def _results_path(self) -> Path:
        return self._directory / "results"

    def _requests(self) -> Requests:
        try:
            return Requests(self._input, self._service.settings.max_body_bytes)
        except FileNotFoundError:
            raise InputLost from None

    async def _answer_each(self, pending: Iterator[int], requests: Requests, results: Results) -> None:
        """One of several that take their next request from the same `pending`."""
        for index in pending:
            asked = requests[index]
            place = Place(self._row.id, index)
            status, body = await self._answer(asked, place)
            results.append(index, answered(place, asked.custom_id, status, body))

    async def _answer(self, asked: Asked, place: Place) -> tuple[int, bytes]:
        """The reply's status and JSON. Want of quota is waited out, a spent budget is not."""
        while True:
            seconds: float | None = None
            try:
                return 200, await self._ask(asked, place)
            except Exception as error:
                known = as_coserve_error(error)
                seconds = pause(known)
            if isinstance(known, QuotaExceeded):
                if self._turns.running(self._row.id):  # what others have reserved may come back
                    seconds = BUSY_SECONDS
                else:
                    self._spent = known
            if seconds is None:
                return known.status, dumps(envelope(known))
            await asyncio.sleep(seconds)

    async def _ask(self, asked: Asked, place: Place) -> bytes:
        async with self._turns.request(self._row.project_id, self._row.id):
            if self._spent is not None:
                raise self._spent
            return await ask(
                self._service,
                self._key(),
                self._row.endpoint,
                asked.body,
                batch_id=self._row.id,
                usage_id=place.usage_id,
            )

    def _key(self) -> Key:
        key = self._service.keys.of_id(self._row.key_id)
        if key is None:
            raise AuthenticationError("The key that the batch was made with is not valid any more.")
        return key

    async def _end(self) -> None:
        self._row = await states.finalize(self._service.database, self._row.id)
        files = await asyncio.to_thread(self._write_files)
        await states.end(self._service.database, self._row.id, files, self._service.settings.files_directory)

    def _write_files(self) -> Files:
        why = CANCELLED if self._row.status == "cancelling" else EXPIRED
        with Results(self._results_path, self._row.total) as results:
            return write_files(self._row.id, self._requests(), results, self._directory, why)
