"""/v1/organization/tiers: the tiers in force, and reading their file, and that of the upstreams, again."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.service.admin.desk import actor_of, desk_of
from coserve.service.auth.audit import record
from coserve.service.tiers import Tiers


async def list_tiers(http: Request) -> Response:
    return JSONResponse(tiers_object(desk_of(http).tiers))


async def reload_tiers(http: Request) -> Response:
    desk = desk_of(http)
    desk.reload()
    async with desk.database.write() as session:
        record(session, actor_of(http), "tiers.reloaded", "tiers", {"tiers": desk.tiers.names})
    return JSONResponse(tiers_object(desk.tiers))


def tiers_object(tiers: Tiers) -> dict[str, Any]:
    """Times are in seconds, prices in USD a million tokens, null is unlimited."""
    content = _plain(tiers.content.model_dump())
    data = [{"id": name, "object": "organization.tier", **tier} for name, tier in content["tiers"].items()]
    return {"object": "list", "data": data, "flex": content["flex"], "batch": content["batch"], "has_more": False}


def _plain(value: Any) -> Any:
    """The same with numbers for decimals."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return float(value) if isinstance(value, Decimal) else value
