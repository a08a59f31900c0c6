"""The command line: `coserve up`, `serve`, `gateway`, `chat`, `plan` and the rest (`coserve --help` lists them).

One file a command. What a command needs of other parts is imported when it runs, so that `coserve --help` is
quick and talking to a server needs no torch. Serving commands load the engine and the service; others speak
HTTP to a running server through `coserve.client`; `keys` and `projects` do so, or open the database themselves.
"""

from __future__ import annotations

from typing import Annotated

import typer

from coserve import __version__
from coserve.cli import (
    batches,
    chat,
    chips,
    gateway,
    jobs,
    keys,
    models,
    plan,
    projects,
    report,
    serve,
    sleep,
    top,
    train,
    up,
)
from coserve.cli.console import Commands

app = typer.Typer(
    name="coserve",
    help="Serve and fine-tune language models on one chip, at once, with one copy of the weights.",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coserve {__version__}")
        raise typer.Exit


@app.callback()
def coserve(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


app.command()(up.up)
app.command()(serve.serve)
app.command()(gateway.gateway)
app.command()(chat.chat)
app.command()(train.train)
app.add_typer(jobs.app, name="jobs")
app.add_typer(batches.app, name="batches")
app.command()(models.models)
app.command()(top.top)
app.command()(report.report)
app.command()(sleep.sleep)
app.command()(sleep.wake)
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.command()(chips.chips)
app.command()(plan.plan)


def main() -> None:
    """The `coserve` command."""
    app()
