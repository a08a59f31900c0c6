"""The options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = "~/.coserve"

Home = Annotated[
    Path | None,
    typer.Option(help=f"Where state lives: database, files, adapters, caches. COSERVE_HOME, else {DEFAULT_HOME}."),
]
ApiKey = Annotated[
    str | None, typer.Option(metavar="KEY", help="COSERVE_API_KEY, else the key made at the first start.")
]
Url = Annotated[str | None, typer.Option(metavar="URL", help="The server. COSERVE_URL, else the one started last.")]


def home_directory(home: Path | None) -> Path:
    """`home`, else COSERVE_HOME, else the default: absolute, whether or not it exists."""
    return Path(home or os.environ.get("COSERVE_HOME") or DEFAULT_HOME).expanduser().resolve()
