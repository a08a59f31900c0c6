"""`coserve projects`: who owns quota, keys, jobs and the bill; on the database itself, or over HTTP."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from coserve.cli.admin_options import AdminKey, AsJson, DatabaseUrl, Tiers, Url, day, given, shown
from coserve.cli.console import Commands
from coserve.cli.options import Home
from coserve.cli.table import show_table
from coserve.errors import InvalidRequest

app = typer.Typer(
    help="Make, list, change or archive projects.", cls=Commands, rich_markup_mode=None, no_args_is_help=True
)
NONE = "none"
OF_TIER = "tier"

Project = Annotated[str, typer.Argument(metavar="ID", help="The project's id, proj-...")]
Tier = Annotated[
    str | None, typer.Option(metavar="NAME|none", help="The tier of its keys (none, the default: the highest).")
]
Budget = Annotated[
    str | None, typer.Option(metavar="USD|none", help="What it may spend in a calendar month (default none: any).")
]
Weight = Annotated[float | None, typer.Option(help="Its share of the chip among projects of a priority (default 1).")]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=N",
        help="Its own limit, such as requests_per_minute=100, =unlimited or =tier (the tier's again); repeatable.",
    ),
]


@app.command()
def create(
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is called.")],
    tier: Tier = None,
    budget: Budget = None,
    weight: Weight = None,
    limit: Limits = None,
    as_json: AsJson = False,
    home: Home = None,
    tiers: Tiers = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """Make a project."""
    from coserve.cli.administration import administration

    body = _body(name, tier, budget, weight, limit)
    with administration(home, url, api_key, database_url, tiers) as office:
        _show([office.create_project(body)], as_json, single=True)


@app.command("list")
def list_projects(
    archived: Annotated[bool, typer.Option("--archived", help="Also those that are archived.")] = False,
    as_json: AsJson = False,
    home: Home = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """The projects, oldest first."""
    from coserve.cli.administration import administration

    with administration(home, url, api_key, database_url) as office:
        _show(office.projects(archived=archived), as_json)


@app.command()
def update(
    project: Project,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is called.")] = None,
    tier: Tier = None,
    budget: Budget = None,
    weight: Weight = None,
    limit: Limits = None,
    as_json: AsJson = False,
    home: Home = None,
    tiers: Tiers = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """Change a project; what is not given stays as it is."""
    from coserve.cli.administration import administration

    body = _body(name, tier, budget, weight, limit)
    if not body:
        raise InvalidRequest("There is nothing to change: give at least one option.")
    with administration(home, url, api_key, database_url, tiers) as office:
        _show([office.update_project(project, body)], as_json, single=True)


@app.command()
def archive(
    project: Project,
    as_json: AsJson = False,
    home: Home = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """Close a project for ever: its keys open nothing any more, its bill stays."""
    from coserve.cli.administration import administration

    with administration(home, url, api_key, database_url) as office:
        _show([office.archive_project(project)], as_json, single=True)


def _show(projects: Sequence[dict[str, Any]], as_json: bool, *, single: bool = False) -> None:
    if as_json:
        return typer.echo(json.dumps(projects[0] if single else projects, indent=2))
    columns = ("id", "name", "status", "tier", "weight", "budget", "limits")
    rows = [[*(shown(project[name]) for name in columns), day(project["created_at"])] for project in projects]
    show_table((*columns, "made"), rows, text_columns=len(columns) + 1)


def _body(
    name: str | None, tier: str | None, budget: str | None, weight: float | None, limits: Sequence[str] | None
) -> dict[str, Any]:
    if weight is not None:
        _finite("weight", weight)
    body = given(name=name, weight=weight, limits=dict(_limit(text) for text in limits or ()))
    if tier is not None:
        body["tier"] = None if tier == NONE else tier
    if budget is not None:
        body["budget"] = None if budget == NONE else _usd(budget)
    return body


def _usd(text: str) -> float:
    try:
        return _finite("budget", float(text))
    except ValueError:
        raise InvalidRequest(f"--budget is {text!r}; it must be USD a month, or none.", param="budget") from None


def _finite(option: str, value: float) -> float:
    """JSON has no other numbers."""
    if not math.isfinite(value):
        raise InvalidRequest(f"--{option} is {value}; it must be a number.", param=option)
    return value


def _limit(text: str) -> tuple[str, Any]:
    """ "requests_per_minute=100" -> its name, and the value as the API says it."""
    name, _, value = text.partition("=")
    if value.isascii() and value.isdigit():
        return name, int(value)
    if value in ("unlimited", OF_TIER):
        return name, None if value == OF_TIER else value
    raise InvalidRequest(f"--limit is {text!r}; it must be NAME=N, NAME=unlimited or NAME=tier.", param="limit")
