"""`coserve top`: the live display for a running server."""

from __future__ import annotations

from typing import Annotated

import typer

from coserve.cli.options import ApiKey, Home, Url, home_directory


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one line and stop.")] = False,
    home: Home = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Watch a running server: its requests, its fine-tuning job, and how its chip's time is shared."""
    from coserve.address import find_server
    from coserve.cli.console import console
    from coserve.cli.observer import Observer
    from coserve.client import Client
    from coserve.display import line, watch

    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        observer = Observer(client, follow_latest=True)
        if once:
            typer.echo(line(observer.look()))
        else:
            watch(iter(observer), console())
