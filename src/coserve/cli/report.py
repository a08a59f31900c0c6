"""`coserve report`: what came in, what it cost, and whether inference pays for the cluster."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coserve.cli.options import Home, home_directory
from coserve.cli.table import show_table
from coserve.errors import InvalidRequest

if TYPE_CHECKING:
    from coserve.service.report import Report


def report(
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="From this moment, UTC (default: this month's beginning).")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="To before this one (default: now).")] = None,
    home: Home = None,
    database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="COSERVE_DATABASE_URL, else the database in the home directory.")
    ] = None,
    chip_price: Annotated[
        float | None, typer.Option(metavar="USD", min=0, help="Of a chip an hour, instead of what is on record.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows for a spreadsheet.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with tables and plots.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plots as a picture.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it for a program.")] = None,
) -> None:
    """Say what was used, what it brought and what the chips cost, by tier, project and model."""
    from coserve.service.money import nano

    start, end = _moment(since, "since", _month()), _moment(until, "until", int(time.time()) + 1)
    if start >= end:
        raise InvalidRequest("--since must be before --until.", param="since")
    price = None if chip_price is None else nano(chip_price)
    found = asyncio.run(_read(_database(home, database_url), start, end, price))
    _show(found)
    _write(found, csv, html, png, json_file)


def _month() -> int:
    return int(datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())


def _moment(text: str | None, option: str, default: int) -> int:
    """Seconds since 1970. Without a time zone it is UTC."""
    if text is None:
        return default
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"--{option} is {text!r}; it must be a date such as 2026-11-01.", param=option) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _database(home: Path | None, url: str | None) -> str:
    """Raises `InvalidRequest` if the home directory has none: reading must not make one."""
    from coserve.service.database import sqlite_url
    from coserve.service.settings import DATABASE

    if url := url or os.environ.get("COSERVE_DATABASE_URL", "").strip():
        return url
    path = home_directory(home) / DATABASE
    if not path.is_file():
        raise InvalidRequest(f"There is no database in {path.parent}: no server has run there.", param="home")
    return sqlite_url(path)


async def _read(url: str, start: int, end: int, chip_price: int | None) -> Report:
    from coserve.service.database import Database
    from coserve.service.report import read_report

    database = Database(url)
    try:
        return await read_report(database, start, end, chip_price)
    finally:
        await database.close()


def _show(found: Report) -> None:
    from coserve.service.report import rows

    typer.echo(f"From {rows.time(found.start)} to {rows.time(found.end)}, UTC")
    for line in rows.headline(found):
        typer.echo(line)
    for title, columns, cells in rows.tables(found):
        typer.echo(f"\n{title}")
        show_table(columns, cells)


def _write(found: Report, csv: Path | None, html: Path | None, png: Path | None, json_file: Path | None) -> None:
    from coserve.planner.page import write
    from coserve.service.report import page, rows

    if csv:
        write(csv, rows.as_csv(found).encode())
    if json_file:
        write(json_file, (json.dumps(rows.as_json(found), indent=2) + "\n").encode())
    if html:
        page.write_html(found, html)
    if png:
        page.write_png(found, png)
    if written := [str(path) for path in (csv, json_file, html, png) if path]:
        typer.echo(f"Wrote {', '.join(written)}", err=True)
