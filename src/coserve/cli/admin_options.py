"""What the commands for keys and projects share: their options, and how they show things."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ask this server (COSERVE_URL) in place of the database of the home directory."),
]
AdminKey = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="A key with the scope admin, for --url. COSERVE_API_KEY.")
]
DatabaseUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="COSERVE_DATABASE_URL, else the database in the home directory.")
]
Tiers = Annotated[
    Path | None, typer.Option(metavar="FILE", help="COSERVE_TIERS, else tiers.yaml in the home directory.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the API has it.")]


def given(**fields: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def shown(value: object) -> str:
    """A cell of a table."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={item}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def day(time: int | None) -> str:
    return "-" if time is None else datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")
