"""/v1/organization/projects/{project_id}/rate_limits: a project's own limits in OpenAI's object.

OpenAI has one for each model; here there is one, for all of them together. Null is the tier's limit.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import NotFound
from coserve.service.admin.desk import AdminBody, actor_of, desk_of
from coserve.service.admin.limits import Limit, shown, stored
from coserve.service.auth.projects import change_project, find_project
from coserve.service.bodies import parse
from coserve.service.paging import listing
from coserve.service.tables import ProjectRow

ID = "rl-all"
FIELDS = {
    "max_requests_per_1_minute": "requests_per_minute",
    "max_tokens_per_1_minute": "tokens_per_minute",
    "max_requests_per_1_day": "requests_per_day",
    "max_tokens_per_1_day": "tokens_per_day",
    "max_concurrent_requests": "concurrent_requests",
}
"""OpenAI's names, and two in their manner, for a tier's limits."""


class RateLimitBody(AdminBody):
    """What is left out stays as it is."""

    max_requests_per_1_minute: Limit = None
    max_tokens_per_1_minute: Limit = None
    max_requests_per_1_day: Limit = None
    max_tokens_per_1_day: Limit = None
    max_concurrent_requests: Limit = None


def rate_limit_object(project: ProjectRow) -> dict[str, Any]:
    own = shown(project.limits)
    return {
        "id": ID,
        "object": "project.rate_limit",
        "model": "*",
        **{field: own.get(name) for field, name in FIELDS.items()},
    }


async def list_rate_limits(http: Request) -> Response:
    return JSONResponse(listing([await _limits(http)], more=False))


async def retrieve_rate_limit(http: Request) -> Response:
    _check_id(http)
    return JSONResponse(await _limits(http))


async def update_rate_limit(http: Request) -> Response:
    _check_id(http)
    desk = desk_of(http)
    body = await parse(http, RateLimitBody)
    said = {FIELDS[field]: value for field, value in body.model_dump(exclude_unset=True).items()}
    change = {"limits": stored(said)}
    row = await change_project(desk.database, http.path_params["project_id"], change, actor_of(http))
    await desk.keys.refresh(desk.database)
    return JSONResponse(rate_limit_object(row))


async def _limits(http: Request) -> dict[str, Any]:
    async with desk_of(http).database.read() as session:
        return rate_limit_object(await find_project(session, http.path_params["project_id"], archived=True))


def _check_id(http: Request) -> None:
    if http.path_params["limit_id"] != ID:
        raise NotFound(f"There is no rate limit {http.path_params['limit_id']!r}; {ID!r} is for all models.")
