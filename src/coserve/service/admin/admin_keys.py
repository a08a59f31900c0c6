"""/v1/organization/admin_api_keys: the keys that open the administration, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import NotFound
from coserve.service.admin.desk import AdminBody, actor_of, desk_of
from coserve.service.admin.project_keys import redacted
from coserve.service.auth.keys import NewKey, revoke_key, valid_keys
from coserve.service.auth.scopes import ADMIN
from coserve.service.bodies import parse
from coserve.service.ids import now
from coserve.service.paging import listing, page
from coserve.service.tables import KeyRow

_OBJECT = "organization.admin_api_key"


class AdminKeyBody(AdminBody):
    name: str
    expires_in_seconds: Annotated[int, Field(gt=0)] | None = None


def admin_key_object(row: KeyRow) -> dict[str, Any]:
    """It belongs to nobody but itself."""
    owner = {"id": row.id, "name": row.name, "created_at": row.created_at, "role": "owner"}
    return {
        "id": row.id,
        "object": _OBJECT,
        "name": row.name,
        "redacted_value": redacted(row),
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
        "expires_at": row.expires_at,
        "owner": {"object": "organization.service_account", "type": "service_account", **owner},
        "scopes": row.scopes,
    }


async def list_admin_keys(http: Request) -> Response:
    async with desk_of(http).database.read() as session:
        rows, more = await page(session, valid_keys(admin=True), http, default=20, largest=100)
    return JSONResponse(listing([admin_key_object(row) for row in rows], more=more))


async def create_admin_key(http: Request) -> Response:
    """The only reply that holds the key."""
    desk = desk_of(http)
    body = await parse(http, AdminKeyBody)
    expires_at = None if body.expires_in_seconds is None else now() + body.expires_in_seconds
    new = NewKey(body.name, scopes=(ADMIN,), expires_at=expires_at)
    value, row = await desk.keys.make(desk.database, new, actor_of(http))
    return JSONResponse({**admin_key_object(row), "value": value})


async def retrieve_admin_key(http: Request) -> Response:
    key_id = http.path_params["key_id"]
    async with desk_of(http).database.read() as session:
        row = await session.scalar(valid_keys(admin=True).where(KeyRow.id == key_id))
    if row is None:
        raise NotFound(f"There is no valid admin key {key_id!r}.")
    return JSONResponse(admin_key_object(row))


async def delete_admin_key(http: Request) -> Response:
    desk = desk_of(http)
    key_id = http.path_params["key_id"]
    await revoke_key(desk.database, key_id, actor_of(http), admin=True)
    await desk.keys.refresh(desk.database)
    return JSONResponse({"id": key_id, "object": f"{_OBJECT}.deleted", "deleted": True})
