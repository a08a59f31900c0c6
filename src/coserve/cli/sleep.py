"""`coserve sleep` and `coserve wake`: lend the GPU of a running server to another program."""

from __future__ import annotations

from typing import Annotated

import typer

from coserve.cli.options import Home, Url, home_directory

AdminKey = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="A key with the scope admin. COSERVE_API_KEY.")
]

_PATIENCE = 600.0  # seconds; a model of hundreds of GB is not moved in one


def sleep(home: Home = None, url: Url = None, api_key: AdminKey = None) -> None:
    """Free the GPU's memory of a running server, which keeps what it has until it wakes."""
    from coserve.address import find_server
    from coserve.client import Client

    with Client(find_server(home_directory(home), url=url, api_key=api_key), timeout=_PATIENCE) as client:
        freed = client.sleep()["freed_bytes"]
    typer.echo(f"asleep: {freed / 1e9:.1f} GB of the GPU's memory are free. Wake it: coserve wake")


def wake(home: Home = None, url: Url = None, api_key: AdminKey = None) -> None:
    """Have a server that sleeps go on."""
    from coserve.address import find_server
    from coserve.client import Client

    with Client(find_server(home_directory(home), url=url, api_key=api_key), timeout=_PATIENCE) as client:
        client.wake()
    typer.echo("awake")
