"""Buckets of time: which of them a request asks for, and the page that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from coserve.errors import InvalidRequest
from coserve.service.admin.grouping import Wanted
from coserve.service.admin.queries import many, moment
from coserve.service.ids import now
from coserve.service.ledger.totals import SECONDS, Totals, Width, totals
from coserve.service.paging import limit_of


@dataclass(frozen=True)
class Buckets:
    """One page of them, from `start` to `end` in seconds since 1970.

    They begin at whole days, hours or minutes (UTC), the first at or before the time that was asked for.
    """

    start: int
    end: int
    width: Width
    more: bool  # whether others follow

    @classmethod
    def of(cls, http: Request, width: Width, *, default: int, largest: int) -> Buckets:
        """Raises `InvalidRequest` for times or a page that cannot be."""
        start = moment(http, "start_time")
        if start is None:
            raise InvalidRequest("'start_time' is required.", param="start_time", code="missing_required_parameter")
        end = moment(http, "end_time") or now()
        if end <= start:
            raise InvalidRequest("'end_time' must be after 'start_time'.", param="end_time")
        seconds = SECONDS[width]
        first = max(start, moment(http, "page") or 0) // seconds * seconds
        last = first + limit_of(http, default=default, largest=largest) * seconds
        whole = -(-end // seconds) * seconds
        return cls(first, min(last, whole), width, last < whole)

    @property
    def starts(self) -> range:
        return range(self.start, self.end, SECONDS[self.width])

    async def totals(self, session: AsyncSession, wanted: Wanted, **filters: Sequence[str]) -> list[Totals]:
        """What was used in them."""
        return wanted.sums(
            await totals(session, self.start, self.end, group_by=wanted.needs, width=self.width, **filters)
        )


def groups(http: Request, known: Sequence[str]) -> list[str]:
    """What the query's `group_by` names. Raises `InvalidRequest` that lists what there is."""
    names = list(dict.fromkeys(many(http, "group_by")))
    for name in names:
        if name not in known:
            raise InvalidRequest(f"'group_by': {name!r} is none of {', '.join(known)}.", param="group_by")
    return names


def page_object(
    buckets: Buckets, found: Iterable[Totals], result: Callable[[Totals], dict[str, Any]]
) -> dict[str, Any]:
    """Every bucket, also those without results."""
    results: dict[int, list[dict[str, Any]]] = {start: [] for start in buckets.starts}
    for one in found:
        results[one.start].append(result(one))
    data = [
        {"object": "bucket", "start_time": start, "end_time": start + buckets.starts.step, "results": results[start]}
        for start in buckets.starts
    ]
    next_page = str(buckets.end) if buckets.more else None
    return {"object": "page", "data": data, "has_more": buckets.more, "next_page": next_page}
