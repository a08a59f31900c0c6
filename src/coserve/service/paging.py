"""OpenAI's pagination: `after` an id, at most `limit`, in the order of making."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from coserve.errors import InvalidRequest


def limit_of(request: Request, *, default: int, largest: int) -> int:
    """The query's `limit`. Raises `InvalidRequest` unless it is from 1 to `largest`."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= largest):
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {largest}.", param="limit")
    return int(text)


def ascending(request: Request) -> bool:
    """Whether the query's `order` is "asc"; by default the newest come first."""
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    return order == "asc"


async def page(
    session: AsyncSession, query: Select[Any], request: Request, *, default: int, largest: int
) -> tuple[list[Any], bool]:
    """The rows of one page of `query`, and whether more follow.

    Raises: `InvalidRequest` for a bad `limit` or `order`, or an `after` that is unknown.
    """
    table = query.column_descriptions[0]["entity"]
    limit = limit_of(request, default=default, largest=largest)
    up = ascending(request)
    after = request.query_params.get("after")
    if after is not None:
        position = await session.scalar(select(table.seq).where(table.id == after))
        if position is None:
            raise InvalidRequest(f"There is no {after!r} to go on after.", param="after")
        query = query.where(table.seq > position if up else table.seq < position)
    query = query.order_by(table.seq.asc() if up else table.seq.desc()).limit(limit + 1)
    rows = list(await session.scalars(query))
    return rows[:limit], len(rows) > limit


def listing(objects: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """The list object around a page."""
    return {
        "object": "list",
        "data": objects,
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": more,
    }
