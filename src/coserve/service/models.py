"""/v1/models: the base model and the fine-tuned ones, as they are served now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import InvalidRequest, ModelNotFound
from coserve.service.auth.door import key_of
from coserve.service.tables import JobRow

if TYPE_CHECKING:
    from coserve.service.service import Service


async def _created(service: Service) -> dict[str, int]:
    """When each fine-tuned model was made, in seconds since 1970."""
    query = select(JobRow.fine_tuned_model, JobRow.finished_at).where(JobRow.status == "succeeded")
    async with service.database.read() as session:
        return {name: finished for name, finished in await session.execute(query) if finished is not None}


def _model_object(service: Service, name: str, created: dict[str, int]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created.get(name, service.started_at),
        "owned_by": service.upstreams.models().get(name, "coserve"),
    }


async def list_models(http: Request) -> Response:
    service: Service = http.app.state.service
    created = await _created(service)
    data = [_model_object(service, name, created) for name in service.models(key_of(http))]
    return JSONResponse({"object": "list", "data": data})


async def retrieve_model(http: Request) -> Response:
    service: Service = http.app.state.service
    name = http.path_params["model"]
    if name not in service.models(key_of(http)):
        raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
    return JSONResponse(_model_object(service, name, await _created(service)))


async def delete_model(http: Request) -> Response:
    service: Service = http.app.state.service
    name = http.path_params["model"]
    if name == service.engine.name:
        raise InvalidRequest("The base model cannot be deleted.", param="model")
    await service.jobs.delete_model(name, key_of(http).project.id)
    return JSONResponse({"id": name, "object": "model", "deleted": True})
