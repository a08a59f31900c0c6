"""/v1/organization/usage/completions: tokens and requests, in buckets of time."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.service.admin.buckets import Buckets, groups, page_object
from coserve.service.admin.desk import desk_of
from coserve.service.admin.grouping import Wanted
from coserve.service.admin.queries import choice, flag, many, only
from coserve.service.ledger.totals import Totals, Width

WIDTHS: dict[str, tuple[Width, int, int]] = {"1m": ("minute", 60, 1440), "1h": ("hour", 24, 168), "1d": ("day", 7, 31)}
"""A bucket's width; how many there are by default, and at most."""
GROUPS = ("project_id", "api_key_id", "model", "batch", "service_tier", "tier")
COMPLETIONS = ("chat", "completions")


async def completions(http: Request) -> Response:
    filters = ("project_ids", "api_key_ids", "models", "batch")
    only(http, "start_time", "end_time", "bucket_width", "group_by", "limit", "page", *filters)
    width, default, largest = WIDTHS[choice(http, "bucket_width", tuple(WIDTHS), "1d")]
    buckets = Buckets.of(http, width, default=default, largest=largest)
    batch = flag(http, "batch")
    keep: dict[str, list[Any]] = {
        "project_id": many(http, "project_ids"),
        "api_key_id": many(http, "api_key_ids"),
        "model": many(http, "models"),
        "batch": [] if batch is None else [batch],
    }
    wanted = Wanted(groups(http, GROUPS), keep)
    async with desk_of(http).database.read() as session:
        found = await buckets.totals(session, wanted, endpoint=COMPLETIONS)
    return JSONResponse(page_object(buckets, found, _result))


def _result(total: Totals) -> dict[str, Any]:
    """Fields that were not grouped by are null."""
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": total.prompt_tokens,
        "input_cached_tokens": total.cached_tokens,
        "output_tokens": total.completion_tokens,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": total.requests,
        "user_id": None,
        **{name: total.group.get(name) for name in GROUPS},
    }
