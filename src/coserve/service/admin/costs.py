"""/v1/organization/costs: what was used in USD, by days."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.service.admin.buckets import Buckets, groups, page_object
from coserve.service.admin.desk import desk_of
from coserve.service.admin.grouping import Wanted
from coserve.service.admin.queries import choice, many, only
from coserve.service.ledger.totals import Totals
from coserve.service.money import usd

GROUPS = ("project_id", "api_key_id", "line_item", "tier")


async def list_costs(http: Request) -> Response:
    only(http, "start_time", "end_time", "bucket_width", "group_by", "limit", "page", "project_ids", "api_key_ids")
    choice(http, "bucket_width", ("1d",), "1d")
    buckets = Buckets.of(http, "day", default=7, largest=180)
    keep = {"project_id": many(http, "project_ids"), "api_key_id": many(http, "api_key_ids")}
    async with desk_of(http).database.read() as session:
        found = await buckets.totals(session, Wanted(groups(http, GROUPS), keep))
    return JSONResponse(page_object(buckets, found, _result))


def _result(total: Totals) -> dict[str, Any]:
    """A line item is a model and what was done with it."""
    return {
        "object": "organization.costs.result",
        "amount": {"value": usd(total.cost), "currency": "usd"},
        **{name: total.group.get(name) for name in GROUPS},
    }
