"""The two halves of the bill, single requests and sums by day, in one shape."""

from __future__ import annotations

from sqlalchemy import CompoundSelect, Select, case, func, select, union_all

from coserve.service.tables import UsageDayRow, UsageRow

DAY = 86400  # seconds
GROUPS = ("project_id", "key_id", "tier", "terms", "endpoint", "model", "adapter", "upstream")
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "generated_tokens", "trained_tokens")
SUMS = ("requests", *TOKENS, "cost", "upstream_cost")
NAME_LENGTH = 500  # characters of a model's name in `usage_days`


def single_rows() -> Select[tuple[object, ...]]:
    """`usage` in the shape of `usage_days`: when, then GROUPS with "" for none, then SUMS."""
    groups = [func.substr(func.coalesce(getattr(UsageRow, name), ""), 1, NAME_LENGTH).label(name) for name in GROUPS]
    requests = case((UsageRow.trained_tokens == 0, 1), else_=0).label("requests")  # a job is no request
    sums = [getattr(UsageRow, name) for name in SUMS[1:]]
    return select(UsageRow.created_at.label("at"), *groups, requests, *sums)


def summed_rows() -> Select[tuple[object, ...]]:
    """`usage_days` likewise."""
    columns = [getattr(UsageDayRow, name) for name in (*GROUPS, *SUMS)]
    return select(UsageDayRow.day.label("at"), *columns)


def all_rows(start: int, end: int) -> CompoundSelect[tuple[object, ...]]:
    """Both, from `start` to before `end` (seconds since 1970). One statement: it sees a row in one half only."""
    return union_all(
        single_rows().where(UsageRow.created_at >= start, UsageRow.created_at < end),
        summed_rows().where(UsageDayRow.day >= start, UsageDayRow.day < end),
    )
