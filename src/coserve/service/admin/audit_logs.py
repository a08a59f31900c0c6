"""/v1/organization/audit_logs: who changed what, newest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, or_, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.service.admin.desk import desk_of
from coserve.service.admin.queries import many, moment, only
from coserve.service.auth.audit import COMMAND_LINE
from coserve.service.auth.oidc import ACTOR_PREFIX
from coserve.service.paging import listing, page
from coserve.service.tables import AuditRow, ProjectRow

_TIMES = {
    "effective_at[gt]": AuditRow.created_at.__gt__,
    "effective_at[gte]": AuditRow.created_at.__ge__,
    "effective_at[lt]": AuditRow.created_at.__lt__,
    "effective_at[lte]": AuditRow.created_at.__le__,
}


async def list_audit_logs(http: Request) -> Response:
    only(http, "limit", "after", "order", "project_ids", "event_types", "actor_ids", "resource_ids", *_TIMES)
    async with desk_of(http).database.read() as session:
        rows, more = await page(session, _query(http), http, default=20, largest=100)
        wanted = select(ProjectRow.id, ProjectRow.name).where(ProjectRow.id.in_({_project(row) or "" for row in rows}))
        names = {found.id: found.name for found in await session.execute(wanted)}
    return JSONResponse(listing([audit_object(row, names) for row in rows], more=more))


def audit_object(row: AuditRow, names: Mapping[str, str]) -> dict[str, Any]:
    """The details stand under the event's own type. `names` are those of projects, by id."""
    project = _project(row)
    details = "changes_requested" if row.type.endswith(".updated") else "data"
    return {
        "id": row.id,
        "object": "organization.audit_log",
        "type": row.type,
        "effective_at": row.created_at,
        "actor": _actor(row.actor),
        **({"project": {"id": project, "name": names.get(project)}} if project else {}),
        row.type: {"id": row.object_id, details: row.data},
    }


def _query(http: Request) -> Select[Any]:
    query = select(AuditRow)
    for name, compare in _TIMES.items():
        if (time := moment(http, name)) is not None:
            query = query.where(compare(time))
    for name, column in (
        ("event_types", AuditRow.type),
        ("actor_ids", AuditRow.actor),
        ("resource_ids", AuditRow.object_id),
    ):
        if chosen := many(http, name):
            query = query.where(column.in_(chosen))
    if projects := many(http, "project_ids"):
        query = query.where(or_(AuditRow.object_id.in_(projects), AuditRow.data["project"].as_string().in_(projects)))
    return query


def _project(row: AuditRow) -> str | None:
    """The project that the event is about."""
    return row.object_id if row.type.startswith("project.") else row.data.get("project")


def _actor(actor: str) -> dict[str, Any]:
    """A key; or a person, whom OpenAI's object knows by a session."""
    if actor == COMMAND_LINE or actor.startswith(ACTOR_PREFIX):
        return {"type": "session", "session": {"user": {"id": actor, "email": None}}}
    key = {"id": actor, "type": "service_account", "service_account": {"id": actor}}
    return {"type": "api_key", "api_key": key}
