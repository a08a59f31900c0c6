"""The application: which route leads where, and what every request passes on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from coserve.service import chat, completions, files, fine_tuning, models, operations, planning
from coserve.service.admin.routes import ROUTES as ADMIN_ROUTES
from coserve.service.auth.door import Door
from coserve.service.batches import routes as batches
from coserve.service.errors import Guard
from coserve.service.jobs import Training
from coserve.service.metrics import Counted
from coserve.service.route import Route
from coserve.service.service import Service
from coserve.service.settings import Settings

if TYPE_CHECKING:
    from coserve.engine import Engine

JOBS = "/v1/fine_tuning/jobs"

ROUTES = [
    Route("/v1/chat/completions", chat.create_chat_completion, methods=("POST",)),
    Route("/v1/completions", completions.create_completion, methods=("POST",)),
    Route("/v1/models", models.list_models),
    Route("/v1/models/{model:path}", models.retrieve_model),
    Route("/v1/models/{model:path}", models.delete_model, methods=("DELETE",)),
    Route("/v1/files", files.list_files),
    Route("/v1/files", files.create_file, methods=("POST",)),
    Route("/v1/files/{file_id}", files.retrieve_file),
    Route("/v1/files/{file_id}", files.delete_file, methods=("DELETE",)),
    Route("/v1/files/{file_id}/content", files.file_content),
    Route(JOBS, fine_tuning.list_jobs),
    Route(JOBS, fine_tuning.create_job, methods=("POST",)),
    Route(JOBS + "/{job_id}", fine_tuning.retrieve_job),
    Route(JOBS + "/{job_id}/cancel", fine_tuning.cancel_job, methods=("POST",)),
    Route(JOBS + "/{job_id}/pause", fine_tuning.pause_job, methods=("POST",)),
    Route(JOBS + "/{job_id}/resume", fine_tuning.resume_job, methods=("POST",)),
    Route(JOBS + "/{job_id}/events", fine_tuning.list_events),
    Route(JOBS + "/{job_id}/checkpoints", fine_tuning.list_checkpoints),
    Route("/v1/batches", batches.list_batches),
    Route("/v1/batches", batches.create_batch, methods=("POST",)),
    Route("/v1/batches/{batch_id}", batches.retrieve_batch),
    Route("/v1/batches/{batch_id}/cancel", batches.cancel_batch, methods=("POST",)),
    Route("/v1/chips", planning.list_chips),
    Route("/v1/plan", planning.create_plan, methods=("POST",)),
    Route("/health", operations.health),
    Route("/metrics", operations.metrics),
    Route("/coserve/stats", operations.stats),
    Route("/coserve/upstreams", operations.upstreams),
    *ADMIN_ROUTES,
]


def create_app(engine: Engine, settings: Settings | None = None, *, training: Training | None = None) -> Starlette:
    """The ASGI application. Its service is `app.state.service`; the lifespan opens and closes it."""
    service = Service(engine, settings or Settings(), training)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service:
            yield

    app = Starlette(routes=ROUTES, lifespan=lifespan)
    app.router.redirect_slashes = False
    # all that a request passes: Starlette's own layers would only do again what `Guard` does
    app.middleware_stack = Counted(Guard(Door(app.router)), service.metrics)
    app.state.service = service
    return app
