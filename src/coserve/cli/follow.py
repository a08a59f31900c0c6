"""Following a fine-tuning job to its end: a progress bar on a terminal, lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from coserve.cli.console import console, fail
from coserve.cli.observer import JOB_SECONDS, JobObserver
from coserve.display.state import JobState

if TYPE_CHECKING:
    from rich.console import Console

    from coserve.client import Client


def follow_job(client: Client, job_id: str) -> None:
    """Show the job until it is over. Ends the command with 1 if it failed; on Ctrl-C it goes on."""
    observer = JobObserver(client, job_id)
    screen = console()
    try:
        job = (_bar if screen.is_terminal else _lines)(observer, screen)
    except KeyboardInterrupt:
        typer.echo(
            f"\n{job_id} goes on.\nFollow: coserve jobs follow {job_id}\nStop: coserve jobs cancel {job_id}",
            err=True,
        )
        raise typer.Exit(130) from None
    if job.status != "succeeded":
        fail(f"{job_id} {job.status}: {job.message}" if job.status == "failed" else f"{job_id} was cancelled")
    typer.echo(f"{job_id} succeeded. Try it: coserve chat --model {job.fine_tuned_model}")


def _bar(observer: JobObserver, screen: Console) -> JobState:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("queued", total=None, loss="")

        def show(job: JobState) -> None:
            progress.update(
                task,
                description=job.status,
                completed=job.step,
                total=job.total_steps or None,
                loss=_loss(job),
            )

        return _until_over(observer, show)


def _lines(observer: JobObserver, screen: Console) -> JobState:
    shown = ""

    def show(job: JobState) -> None:
        nonlocal shown
        text = f"{job.status} step {job.step}/{job.total_steps} {_loss(job)}" if job.total_steps else job.status
        if text != shown:
            screen.print(text, markup=False, soft_wrap=True)
            shown = text

    return _until_over(observer, show)


def _loss(job: JobState) -> str:
    return f"loss {job.losses[-1]:.3f}" if job.losses else ""


def _until_over(observer: JobObserver, show: Callable[[JobState], None]) -> JobState:
    while True:
        job = observer.refresh()
        show(job)
        if job.over:
            return job
        time.sleep(JOB_SECONDS)
