"""`coserve jobs`: the fine-tuning jobs of a running server."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from coserve.cli.console import Commands
from coserve.cli.options import ApiKey, Home, Url, home_directory

app = typer.Typer(
    help="List, follow or cancel fine-tuning jobs.",
    cls=Commands,
    rich_markup_mode=None,
    invoke_without_command=True,
)
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, ftjob-...")]


@app.callback()
def jobs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_jobs()


@app.command("list")
def list_jobs(home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """The latest jobs, newest first."""
    from coserve.address import find_server
    from coserve.client import Client

    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        found = client.jobs()
    for job in found:
        typer.echo(_row(job))
    if not found:
        typer.echo("no jobs yet: start one with `coserve train DATA.jsonl`", err=True)


@app.command()
def follow(job: JobId, home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Show a job's progress until it ends; Ctrl-C leaves it running."""
    from coserve.address import find_server
    from coserve.cli.follow import follow_job
    from coserve.client import Client

    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        follow_job(client, job)


@app.command()
def cancel(job: JobId, home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Cancel a job."""
    from coserve.address import find_server
    from coserve.client import Client

    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        typer.echo(_row(client.cancel_job(job)))


def _row(job: dict[str, Any]) -> str:
    made = datetime.fromtimestamp(job["created_at"]).strftime("%Y-%m-%d %H:%M")
    return f"{job['id']}  {made}  {job['status']:<16}  {job.get('fine_tuned_model') or job['model']}"
