"""/v1/organization/projects."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.service.admin.desk import AdminBody, actor_of, desk_of
from coserve.service.admin.limits import Limit, shown, stored
from coserve.service.admin.queries import flag
from coserve.service.auth.projects import (
    OF_TIER,
    NewProject,
    archive_project,
    change_project,
    find_project,
    make_project,
)
from coserve.service.bodies import parse
from coserve.service.money import nano, usd
from coserve.service.paging import listing, page
from coserve.service.tables import ProjectRow


class ProjectBody(AdminBody):
    name: str
    tier: str | None = None
    weight: float = 1.0
    budget: float | None = None  # USD a calendar month
    limits: dict[str, Limit] | None = None


class ProjectChange(ProjectBody):
    """What is left out stays as it is."""

    name: str = ""


def project_object(row: ProjectRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "organization.project",
        "name": row.name,
        "created_at": row.created_at,
        "archived_at": row.archived_at,
        "status": "active" if row.archived_at is None else "archived",
        "tier": row.tier,
        "weight": row.weight,
        "budget": None if row.budget is None else usd(row.budget),
        "limits": shown(row.limits),
    }


async def list_projects(http: Request) -> Response:
    query = select(ProjectRow)
    if not flag(http, "include_archived"):
        query = query.where(ProjectRow.archived_at.is_(None))
    async with desk_of(http).database.read() as session:
        rows, more = await page(session, query, http, default=20, largest=100)
    return JSONResponse(listing([project_object(row) for row in rows], more=more))


async def create_project(http: Request) -> Response:
    desk = desk_of(http)
    fields = _fields(http, await parse(http, ProjectBody))
    limits = {name: value for name, value in fields.pop("limits").items() if value != OF_TIER}
    row = await make_project(desk.database, NewProject(**fields, limits=limits), actor_of(http))
    await desk.keys.refresh(desk.database)
    return JSONResponse(project_object(row))


async def retrieve_project(http: Request) -> Response:
    async with desk_of(http).database.read() as session:
        return JSONResponse(project_object(await find_project(session, http.path_params["project_id"], archived=True)))


async def update_project(http: Request) -> Response:
    desk = desk_of(http)
    change = _fields(http, await parse(http, ProjectChange))
    row = await change_project(desk.database, http.path_params["project_id"], change, actor_of(http))
    await desk.keys.refresh(desk.database)
    return JSONResponse(project_object(row))


async def archive(http: Request) -> Response:
    desk = desk_of(http)
    row = await archive_project(desk.database, http.path_params["project_id"], actor_of(http))
    await desk.keys.refresh(desk.database)
    return JSONResponse(project_object(row))


def _fields(http: Request, body: ProjectBody) -> dict[str, Any]:
    """What the body says, as the database keeps it. Raises `InvalidRequest` for a tier that there is not."""
    fields = body.model_dump(exclude_unset=True)
    if fields.get("tier") is not None:
        desk_of(http).tiers.find(fields["tier"])
    if fields.get("budget") is not None:
        fields["budget"] = nano(fields["budget"])
    return {**fields, "limits": stored(fields.get("limits") or {})}
