"""`coserve models`: what a running server serves."""

from __future__ import annotations

import typer

from coserve.cli.options import ApiKey, Home, Url, home_directory


def models(home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """List the models of a running server: the base model, then its adapters."""
    from coserve.address import find_server
    from coserve.client import Client

    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        for model in client.models():
            typer.echo(model["id"])
