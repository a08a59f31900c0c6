"""`coserve chips`: the catalogue of chips, or a chip in full with where each figure was read."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from coserve.cli.table import show_table

if TYPE_CHECKING:
    from coserve.chips import ChipSpec

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME ...]", help="Chips to show in full; all, as a table.")
]

_COLUMNS = ("chip", "vendor", "memory", "bandwidth", "bf16", "fp8", "link", "group", "power", "$/h")


def chips(
    names: Names = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: every field and figure.")] = False,
) -> None:
    """List the chips that the planner knows, or show some with the source of every figure."""
    from coserve.chips import catalogue, find_chip

    found = [find_chip(name) for name in names] if names else list(catalogue())
    if as_json:
        typer.echo(json.dumps([asdict(chip) for chip in found], indent=2))
    elif names:
        typer.echo("\n\n".join("\n".join(_in_full(chip)) for chip in found))
    else:
        show_table(_COLUMNS, [_row(chip) for chip in found], text_columns=2)


def _row(chip: ChipSpec) -> tuple[str, ...]:
    return (
        chip.name,
        chip.vendor,
        _scaled(chip.capacity, "B"),
        _scaled(chip.bandwidth, "B/s"),
        _scaled(chip.flops.get("bfloat16"), "FLOP/s"),
        _scaled(chip.flops.get("float8"), "FLOP/s"),
        _scaled(chip.link_bandwidth or None, "B/s"),
        str(chip.group),
        f"{chip.power:,.0f} W",
        "-" if chip.price_per_hour is None else f"{chip.price_per_hour:.2f}",
    )


def _in_full(chip: ChipSpec) -> list[str]:
    lines = [f"{chip.name} ({chip.vendor}, {chip.kind})"]
    if chip.aliases:
        lines.append(f"  also: {', '.join(chip.aliases)}")
    for field, figure in chip.figures.items():
        shown = _scaled(figure.value, _unit(field))
        lines.append(f"  {field:<24} {shown:>16}  {figure.confidence}, {figure.date}: {figure.source}")
    return lines


def _unit(field: str) -> str:
    if field.startswith("flops."):
        return "FLOP/s"
    last = field.rsplit(".", 1)[-1]
    units = {"capacity": "B", "bandwidth": "B/s", "link_bandwidth": "B/s", "link_latency": "s", "power": "W"}
    return units.get(last, "$" if last == "price_per_hour" else "")


def _scaled(value: float | None, unit: str) -> str:
    """`value` with a decimal prefix: 3.35 TB/s."""
    if value is None:
        return "-"
    if unit == "s":
        return f"{value * 1e6:g} us"
    if unit in ("B", "B/s", "FLOP/s"):
        for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
            if value >= scale:
                return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()
