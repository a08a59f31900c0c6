"""/v1/organization/projects/{project_id}/api_keys: a project's keys; each is told once, when it is made."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import InvalidRequest, NotFound
from coserve.service.admin.desk import AdminBody, actor_of, desk_of
from coserve.service.auth.keys import NewKey, revoke_key, valid_keys
from coserve.service.auth.projects import find_project
from coserve.service.auth.scopes import ADMIN, ALL
from coserve.service.bodies import parse
from coserve.service.paging import listing, page
from coserve.service.tables import KeyRow, ProjectRow


class KeyBody(AdminBody):
    name: str
    tier: str | None = None
    up_to: str | None = None
    scopes: tuple[str, ...] = (ALL,)
    models: list[str] | None = None
    expires_at: int | None = None


def redacted(row: KeyRow) -> str:
    """What may be seen of a key."""
    return f"{row.prefix}..."


def key_object(row: KeyRow, project: ProjectRow) -> dict[str, Any]:
    """Its owner, of whom OpenAI's clients read, is the project itself."""
    owner = {"id": project.id, "name": project.name, "created_at": project.created_at, "role": "member"}
    return {
        "id": row.id,
        "object": "organization.project.api_key",
        "name": row.name,
        "redacted_value": redacted(row),
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
        "expires_at": row.expires_at,
        "owner": {"type": "service_account", "service_account": owner},
        "owner_project_access": "active" if project.archived_at is None else "inactive",
        "project_id": row.project_id,
        "tier": row.tier,
        "up_to": row.up_to,
        "scopes": row.scopes,
        "models": row.models,
    }


async def list_keys(http: Request) -> Response:
    async with desk_of(http).database.read() as session:
        project = await find_project(session, http.path_params["project_id"], archived=True)
        query = valid_keys(admin=False).where(KeyRow.project_id == project.id)
        rows, more = await page(session, query, http, default=20, largest=100)
    return JSONResponse(listing([key_object(row, project) for row in rows], more=more))


async def create_key(http: Request) -> Response:
    """The only reply that holds a key."""
    desk = desk_of(http)
    body = await parse(http, KeyBody)
    if ADMIN in body.scopes:
        raise InvalidRequest("An admin key is made at /v1/organization/admin_api_keys.", param="scopes")
    for param in ("tier", "up_to"):
        if (tier := getattr(body, param)) is not None:
            desk.tiers.find(tier, param)
    new = NewKey(
        name=body.name,
        project=http.path_params["project_id"],
        tier=body.tier,
        up_to=body.up_to,
        scopes=body.scopes,
        models=None if body.models is None else tuple(body.models),
        expires_at=body.expires_at,
    )
    value, row = await desk.keys.make(desk.database, new, actor_of(http))
    async with desk.database.read() as session:
        project = await find_project(session, row.project_id, archived=True)
    return JSONResponse({**key_object(row, project), "value": value})


async def retrieve_key(http: Request) -> Response:
    key_id = http.path_params["key_id"]
    async with desk_of(http).database.read() as session:
        project = await find_project(session, http.path_params["project_id"], archived=True)
        query = valid_keys(admin=False).where(KeyRow.id == key_id, KeyRow.project_id == project.id)
        row = await session.scalar(query)
    if row is None:
        raise NotFound(f"There is no valid API key {key_id!r} in the project {project.id!r}.")
    return JSONResponse(key_object(row, project))


async def delete_key(http: Request) -> Response:
    desk = desk_of(http)
    key_id, project_id = http.path_params["key_id"], http.path_params["project_id"]
    await revoke_key(desk.database, key_id, actor_of(http), project=project_id, admin=False)
    await desk.keys.refresh(desk.database)
    return JSONResponse({"id": key_id, "object": "organization.project.api_key.deleted", "deleted": True})
