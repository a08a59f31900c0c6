"""`coserve keys`: API keys, made, listed, revoked; on the database itself, or over HTTP."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from coserve.cli.admin_options import AdminKey, AsJson, DatabaseUrl, Tiers, Url, day, given, shown
from coserve.cli.console import Commands
from coserve.cli.options import Home
from coserve.cli.table import show_table
from coserve.errors import InvalidRequest

app = typer.Typer(help="Make, list or revoke API keys.", cls=Commands, rich_markup_mode=None, no_args_is_help=True)
ADMIN = "admin"
DEFAULT_PROJECT = "proj-default"


@app.command()
def create(
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")],
    project: Annotated[str, typer.Option(metavar="ID", help="Whose it is.")] = DEFAULT_PROJECT,
    tier: Annotated[str | None, typer.Option(metavar="NAME", help="Its tier (default: the project's).")] = None,
    up_to: Annotated[str | None, typer.Option(metavar="NAME", help="The highest tier that it may ask for.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="What it opens (default: all, which is all but admin); repeatable."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A model that it may use (default: any); repeatable.")
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="When it ends, such as 12h or 30d.")] = None,
    as_json: AsJson = False,
    home: Home = None,
    tiers: Tiers = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """Make a key. It is printed this once, alone on standard output."""
    from coserve.cli.administration import administration

    lasts = _seconds(expires)
    with administration(home, url, api_key, database_url, tiers) as office:
        if scope == [ADMIN]:
            if given(tier=tier, up_to=up_to, models=model) or project != DEFAULT_PROJECT:
                raise InvalidRequest("An admin key has no project, tier or models.", param="scope")
            made = office.create_admin_key(given(name=name, expires_in_seconds=lasts))
        else:
            body = given(name=name, tier=tier, up_to=up_to, scopes=scope, models=model, expires_at=_moment(lasts))
            made = office.create_key(project, body)
    typer.echo(f"{made['id']} ({made['name']}), shown this once:", err=True)
    typer.echo(json.dumps(made, indent=2) if as_json else made["value"])


@app.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(metavar="ID", help="Only this project's.")] = None,
    as_json: AsJson = False,
    home: Home = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """The valid keys; of each its beginning only."""
    from coserve.cli.administration import administration

    with administration(home, url, api_key, database_url) as office:
        keys = office.all_keys() if project is None else office.keys(project)
    if as_json:
        typer.echo(json.dumps(keys, indent=2))
    else:
        columns = ("id", "name", "key", "project", "tier", "up to", "scopes", "models", "made", "expires")
        show_table(columns, [_row(key) for key in keys], text_columns=len(columns))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key-...")],
    home: Home = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    api_key: AdminKey = None,
) -> None:
    """Make a key void, for ever."""
    from coserve.cli.administration import administration

    with administration(home, url, api_key, database_url) as office:
        key = office.revoke_key(key_id)
    typer.echo(f"{key['id']} ({key['name']}) is revoked")


def _row(key: dict[str, Any]) -> list[str]:
    names = ("id", "name", "redacted_value", "project_id", "tier", "up_to", "scopes", "models")
    return [*(shown(key.get(name)) for name in names), day(key["created_at"]), day(key["expires_at"])]


def _seconds(text: str | None) -> int | None:
    """Raises `InvalidRequest` for what is no time from now."""
    if text is None:
        return None
    from coserve.planner.quantities import seconds

    lasts = int(seconds(text, "expires"))
    if lasts < 1:
        raise InvalidRequest(f"--expires is {text!r}; it must be at least a second.", param="expires")
    return lasts


def _moment(lasts: int | None) -> int | None:
    import time

    return None if lasts is None else int(time.time()) + lasts
