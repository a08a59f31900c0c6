"""`coserve batches`: files of requests, answered below everybody else and at half price."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coserve.cli.console import Commands, fail
from coserve.cli.options import ApiKey, Home, Url, home_directory

if TYPE_CHECKING:
    from coserve.client import Client

app = typer.Typer(
    help="Create, list, show, cancel or wait for batches of requests.",
    cls=Commands,
    rich_markup_mode=None,
    invoke_without_command=True,
)
BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id, batch-...")]
Output = Annotated[Path | None, typer.Option(metavar="PATH", help="Write the replies there when it has ended.")]
OVER = ("completed", "failed", "expired", "cancelled")
POLL_SECONDS = 1.0


@app.callback()
def batches(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_batches()


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines: custom_id, method, url, body.")],
    window: Annotated[str, typer.Option(help="The time within which it is to end, at most 24h.")] = "24h",
    home: Home = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Upload a file of requests and start its batch; the endpoint is the `url` of its first line."""
    endpoint = _endpoint(file)
    with _client(home, url, api_key) as client:
        uploaded = client.upload(file, purpose="batch")
        batch = client.create_batch(input_file_id=uploaded["id"], endpoint=endpoint, completion_window=window)
    typer.echo(_row(batch))
    typer.echo(f"Wait for it: coserve batches wait {batch['id']} --output replies.jsonl")


@app.command("list")
def list_batches(home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """The latest batches, newest first."""
    with _client(home, url, api_key) as client:
        found = client.batches()
    for batch in found:
        typer.echo(_row(batch))
    if not found:
        typer.echo("no batches yet: start one with `coserve batches create FILE.jsonl`", err=True)


@app.command()
def show(batch: BatchId, home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """All that the server says of a batch, as JSON."""
    with _client(home, url, api_key) as client:
        typer.echo(json.dumps(client.batch(batch), indent=2))


@app.command()
def cancel(batch: BatchId, home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Cancel a batch; the replies that are there stay."""
    with _client(home, url, api_key) as client:
        typer.echo(_row(client.cancel_batch(batch)))


@app.command()
def wait(batch: BatchId, output: Output = None, home: Home = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Show a batch's progress until it has ended; Ctrl-C leaves it running."""
    with _client(home, url, api_key) as client:
        ended = _until_over(client, batch)
        if output is not None and ended["output_file_id"] is not None:
            with output.open("wb") as file:
                file.writelines(client.content(ended["output_file_id"]))
    if ended["status"] != "completed":
        mistakes = (ended["errors"] or {}).get("data", [])
        fail(f"{batch} {ended['status']}" + "".join(f"; {_mistake(one)}" for one in mistakes))


def _client(home: Path | None, url: str | None, api_key: str | None) -> Client:
    from coserve.address import find_server
    from coserve.client import Client

    return Client(find_server(home_directory(home), url=url, api_key=api_key))


def _endpoint(file: Path) -> str:
    try:
        with file.open("rb") as lines:
            return str(json.loads(lines.readline())["url"])
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", 2)
    except (ValueError, KeyError, TypeError):
        fail(f"{file}: the first line is no request with custom_id, method, url and body", 2)


def _until_over(client: Client, batch_id: str) -> dict[str, Any]:
    """Prints each change."""
    shown = ""
    while True:
        batch = client.batch(batch_id)
        if (row := _row(batch)) != shown:
            typer.echo(row)
            shown = row
        if batch["status"] in OVER:
            return batch
        time.sleep(POLL_SECONDS)


def _row(batch: dict[str, Any]) -> str:
    made = datetime.fromtimestamp(batch["created_at"]).strftime("%Y-%m-%d %H:%M")
    counts = batch["request_counts"]
    done = f"{counts['completed'] + counts['failed']}/{counts['total']}"
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{batch['id']}  {made}  {batch['status']:<16}  {done}{failed}"


def _mistake(mistake: dict[str, Any]) -> str:
    where = f"line {mistake['line']}: " if mistake.get("line") else ""
    return where + mistake["message"]
