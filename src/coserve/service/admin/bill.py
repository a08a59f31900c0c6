"""Sums over what was used. It stands in for `service/ledger/totals.py`, whose `totals` is called the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.service.tables import UsageDayRow, UsageRow

Width = Literal["minute", "hour", "day"]
SECONDS: dict[Width, int] = {"minute": 60, "hour": 3600, "day": 86400}
GROUPS = ("project_id", "key_id", "tier", "terms", "endpoint", "model", "adapter")
SUMS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "trained_tokens", "cost")


@dataclass(frozen=True)
class Totals:
    start: int  # seconds since 1970: the bucket's first
    group: dict[str, str | None]  # by what was grouped by
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    trained_tokens: int
    cost: int  # nano-dollars


async def totals(
    session: AsyncSession,
    start: int,
    end: int,
    *,
    group_by: Sequence[str] = (),
    width: Width,
    **filters: Sequence[str],
) -> list[Totals]:
    """From `start` to before `end`, for each bucket and group in which something was used.

    Days that have been summed count as a whole, at their beginning.
    """
    rows = union_all(
        _columns(UsageRow, UsageRow.created_at, literal(1)),
        _columns(UsageDayRow, UsageDayRow.day, UsageDayRow.requests),
    ).subquery()
    bucket = (rows.c.at - rows.c.at % SECONDS[width]).label("bucket")
    groups = [rows.c[name] for name in group_by]
    query = select(bucket, *groups, *(func.sum(rows.c[name]).label(name) for name in SUMS))
    query = query.where(rows.c.at >= start, rows.c.at < end)
    for name, values in filters.items():
        query = query.where(rows.c[name].in_(values))
    found = await session.execute(query.group_by(bucket, *groups).order_by(bucket, *groups))
    return [
        Totals(
            row.bucket,
            {name: getattr(row, name) or None for name in group_by},
            **{name: int(getattr(row, name)) for name in SUMS},
        )
        for row in found
    ]


def _columns(table: Any, at: Any, requests: Any) -> Select[Any]:
    """The same columns of both tables."""
    adapter = func.coalesce(table.adapter, "").label("adapter")
    own = [getattr(table, name) for name in (*GROUPS[:-1], *SUMS[1:])]
    return select(at.label("at"), requests.label("requests"), adapter, *own)
