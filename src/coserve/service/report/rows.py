"""A report as rows: for a terminal, for a spreadsheet, for a program."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from coserve.service.money import NANO, usd
from coserve.service.report.data import ChipUse, Report, Use

USE_COLUMNS = ("requests", "input", "cached", "output", "trained", "revenue", "share")
UPSTREAM_COLUMNS = ("upstream", "requests", "input", "cached", "output", "revenue", "cost")
CHIP_COLUMNS = ("chip", "hours", "inference", "training", "idle", "cost")
UNKNOWN = "unknown"

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Its title, its columns, its cells; the last row is the sum."""


def headline(report: Report) -> list[str]:
    """The whole of it in a few sentences."""
    whole, chips = report.whole, report.all_chips
    lines = [
        f"Revenue {money(whole.revenue)}: inference {money(whole.inference_revenue)}, "
        f"training {money(whole.training_revenue)}.",
        f"Chips {money(chips.cost if report.chips else None)} for {chips.seconds / 3600:,.1f} hours"
        f"{f', upstreams {money(whole.upstream_cost)}' if report.upstreams else ''}; margin {percent(report.margin)}.",
        f"A million tokens (input and output) brought {dollars(report.per_million(whole.inference_revenue))} "
        f"and cost {dollars(report.per_million(report.cost))}, had they to pay for all {_costly(report)}.",
    ]
    if report.chips:
        inference, training, idle = chips.shares()
        lines.append(f"Chip time: inference {inference:.1%}, training {training:.1%}, nothing {idle:.1%}.")
    return [*lines, verdict(report)]


def verdict(report: Report) -> str:
    """Does inference pay for the cluster?"""
    question = "Does inference pay for the cluster?"
    if report.coverage is None:
        nothing = f"the {_costly(report)} cost nothing"
        why = nothing if report.cost == 0 else "what the chips cost is unknown (--chip-price says it)"
        return f"{question} {why[0].upper()}{why[1:]}."
    answer = "Yes" if report.coverage >= 1 else "No"
    return f"{question} {answer}: its revenue is {report.coverage:.2f} times what the {_costly(report)} cost."


def _costly(report: Report) -> str:
    return "chips and upstreams" if report.upstreams else "chips"


def tables(report: Report) -> list[Table]:
    found: list[Table] = [
        (title, (title.removeprefix("By "), *USE_COLUMNS), [_cells(use, report) for use in (*uses, report.whole)])
        for title, uses in (("By tier", report.tiers), ("By project", report.projects), ("By model", report.models))
    ]
    if report.upstreams:
        found.append(("By upstream", UPSTREAM_COLUMNS, [_upstream_cells(use) for use in report.upstreams]))
    if report.chips:
        rows = [chip_cells(chip) for chip in (*report.chips, report.all_chips)]
        found.append(("The chips", CHIP_COLUMNS, rows))
    return found


def _cells(use: Use, report: Report) -> tuple[str, ...]:
    counts = (use.requests, use.input, use.cached, use.output, use.trained)
    share = use.revenue / report.whole.revenue if report.whole.revenue else None
    return (use.name, *(f"{count:,}" for count in counts), money(use.revenue), percent(share))


def _upstream_cells(use: Use) -> tuple[str, ...]:
    counts = (use.requests, use.input, use.cached, use.output)
    return (use.name, *(f"{count:,}" for count in counts), money(use.revenue), money(use.upstream_cost))


def chip_cells(chip: ChipUse) -> tuple[str, ...]:
    return (
        chip.name,
        f"{chip.seconds / 3600:,.1f}",
        *(f"{share:.1%}" for share in chip.shares()),
        money(chip.cost),
    )


def money(amount: int | None) -> str:
    """Nano-dollars for people: cents, and more digits for less than a dollar."""
    return dollars(None if amount is None else usd(amount))


def dollars(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    sign = "-" if value < 0 else ""
    return f"{sign}${abs(value):,.2f}" if abs(value) >= 1 or not value else f"{sign}${abs(value):.3g}"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.1%}"


def time(seconds: int) -> str:
    """UTC; a date if it is a day's beginning."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%Y-%m-%d}" if seconds % 86400 == 0 else f"{at:%Y-%m-%d %H:%M}"


# --- for programs -----------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """Numbers: tokens, seconds, dollars; null is unknown."""
    return {
        "start": report.start,
        "end": report.end,
        "total": _use(report.whole),
        "tiers": [_use(use) for use in report.tiers],
        "projects": [_use(use) for use in report.projects],
        "models": [_use(use) for use in report.models],
        "upstreams": [_use(use) for use in report.upstreams],
        "days": [{**_use(use), "name": time(day)} for day, use in report.days],
        "chips": [_chip(chip) for chip in report.chips],
        "cost_usd": _usd(report.cost),
        "margin": report.margin,
        "revenue_usd_per_million_tokens": report.per_million(report.whole.inference_revenue),
        "cost_usd_per_million_tokens": report.per_million(report.cost),
        "inference_revenue_over_cost": report.coverage,
    }


def _usd(amount: int | None) -> float | None:
    return None if amount is None else usd(amount)


def _use(use: Use) -> dict[str, Any]:
    return {
        "name": use.name,
        "requests": use.requests,
        "input_tokens": use.input,
        "cached_tokens": use.cached,
        "output_tokens": use.output,
        "trained_tokens": use.trained,
        "inference_revenue_usd": usd(use.inference_revenue),
        "training_revenue_usd": usd(use.training_revenue),
        "revenue_usd": usd(use.revenue),
        "upstream_cost_usd": usd(use.upstream_cost),
    }


def _chip(chip: ChipUse) -> dict[str, Any]:
    return {
        "name": chip.name,
        "inference_seconds": chip.inference,
        "training_seconds": chip.training,
        "idle_seconds": chip.idle,
        "cost_usd": _usd(chip.cost),
    }


def as_csv(report: Report) -> str:
    """One table: `by` says what a row is of; dollars with all their digits; empty is unknown or not of this row."""
    kinds = (
        ("total", (report.whole,)),
        ("tier", report.tiers),
        ("project", report.projects),
        ("model", report.models),
        ("upstream", report.upstreams),
    )
    rows = [{"by": kind, **_use(use), **_exact(use)} for kind, uses in kinds for use in uses]
    rows += [{"by": "day", **_use(use), **_exact(use), "name": time(day)} for day, use in report.days]
    rows += [{"by": "chip", **_chip(chip), "cost_usd": _decimal(chip.cost)} for chip in report.chips]
    file = io.StringIO()
    columns = ["by", *_use(report.whole), *(name for name in _chip(ChipUse("")) if name != "name")]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _exact(use: Use) -> dict[str, str]:
    return {
        "inference_revenue_usd": _decimal(use.inference_revenue),
        "training_revenue_usd": _decimal(use.training_revenue),
        "revenue_usd": _decimal(use.revenue),
        "upstream_cost_usd": _decimal(use.upstream_cost),
    }


def _decimal(amount: int | None) -> str:
    return "" if amount is None else f"{Decimal(amount) / NANO:f}"
