"""What the bill says: totals by time, project, tier, model, for reports, budgets and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import BigInteger, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.errors import InvalidRequest
from coserve.service.ledger.days import DAY, GROUPS, SUMS, all_rows

Width = Literal["minute", "hour", "day"]
SECONDS: dict[Width, int] = {"minute": 60, "hour": 3600, "day": DAY}
FAR = 1 << 62  # seconds since 1970: later than anything


@dataclass(frozen=True)
class Totals:
    """Sums over one bucket of time and one group."""

    start: int  # seconds since 1970: the bucket's first, or the whole time's
    group: dict[str, str | None]  # by what was grouped by; None: no adapter, this server's own chip
    requests: int  # fine-tuning jobs are none
    prompt_tokens: int
    cached_tokens: int  # of the prompts'
    completion_tokens: int
    generated_tokens: int
    trained_tokens: int
    cost: int  # nano-dollars
    upstream_cost: int  # what upstreams take for it


@dataclass(frozen=True)
class Spent:
    """What a project has used up."""

    requests: int
    tokens: int  # of prompts and completions
    trained_tokens: int
    cost: int  # nano-dollars


async def totals(
    session: AsyncSession,
    start: int,
    end: int,
    *,
    group_by: Sequence[str] = (),
    width: Width | None = None,
    **filters: str | Sequence[str | None] | None,
) -> list[Totals]:
    """From `start` to before `end` (seconds since 1970), in buckets of `width` (UTC; None: one), by group.

    Groups and filters are `project_id`, `key_id`, `tier`, `terms`, `endpoint`, `model`, `adapter`, `upstream`; a
    filter is a value, or several; None and "" are "none". Buckets and groups in which nothing was used are not
    listed. Days that have been summed count as a whole, at their beginning. Raises `InvalidRequest` for another name.
    """
    for name in (*group_by, *filters):
        if name not in GROUPS:
            raise InvalidRequest(f"The bill is not kept by {name!r}; there are {', '.join(GROUPS)}.", param=name)
    rows = all_rows(start, end).subquery()
    bucket = rows.c.at - rows.c.at % SECONDS[width] if width else literal(start, BigInteger)
    chosen = select(bucket.label("start"), *(rows.c[name] for name in (*group_by, *SUMS)))
    for name, value in filters.items():
        chosen = chosen.where(rows.c[name].in_(_values(value)))
    part = chosen.subquery()
    keys = [part.c[name] for name in ("start", *group_by)]
    sums = [func.sum(part.c[name]) for name in SUMS]
    found = await session.execute(select(*keys, *sums).group_by(*keys).order_by(*keys))
    return [_totals(list(row), group_by) for row in found]


def _values(value: str | Sequence[str | None] | None) -> list[str]:
    several = [value] if value is None or isinstance(value, str) else value
    return [one or "" for one in several]


def _totals(row: list[Any], group_by: Sequence[str]) -> Totals:
    start, groups, sums = row[0], row[1 : 1 + len(group_by)], row[1 + len(group_by) :]
    group = {name: value or None for name, value in zip(group_by, groups, strict=True)}
    return Totals(int(start), group, **{name: int(total) for name, total in zip(SUMS, sums, strict=True)})


async def spent(session: AsyncSession, project_id: str, since: int) -> Spent:
    """What the project has used up since then (seconds since 1970)."""
    for found in await totals(session, since, FAR, project_id=project_id):
        tokens = found.prompt_tokens + found.completion_tokens
        return Spent(found.requests, tokens, found.trained_tokens, found.cost)
    return Spent(0, 0, 0, 0)
