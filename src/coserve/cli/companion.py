"""The second process of `coserve up`: it runs the example job and shows what happens.

It knows the server by its address only. If the server goes away, so does it.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from coserve.address import Server
from coserve.cli import example_job
from coserve.cli.console import console
from coserve.cli.observer import JobObserver, Observer
from coserve.client import ApiError, Client, UnreachableError
from coserve.demo import DemoLoad
from coserve.display import Comparison, State, watch
from coserve.errors import CoserveError, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

_RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Errand:
    """What the companion is asked to do."""

    server: Server
    example: bool = True
    demo_load: bool = False


def accompany(errand: Errand) -> None:
    """Run the errand until the server or the user ends it. The entry point of the process."""
    signal.signal(signal.SIGTERM, _interrupt)  # as with Ctrl-C, the terminal is to be left in order
    screen = console()
    try:
        with Client(errand.server) as client:
            _tell(client, errand, screen)
    except (KeyboardInterrupt, UnreachableError):
        pass  # the server ends, or has ended: it says why
    except CoserveError as error:
        screen.print(f"The display has ended, the server goes on: {error.message}", markup=False)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _server_lives() -> bool:
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def _tell(client: Client, errand: Errand, screen: Console) -> None:
    """The story: serve, train meanwhile, compare, go on serving."""
    model = client.models()[0]["id"]
    observer = Observer(client)
    with DemoLoad(errand.server, model) if errand.demo_load else nullcontext():
        if errand.example:
            _show_training(client, observer, model, screen)
        watch(_while_server_lives(observer), screen)


def _show_training(client: Client, observer: Observer, model: str, screen: Console) -> None:
    try:
        job_id = example_job.unfinished_job(client) or example_job.start(client, model)
    except (ApiError, InvalidRequest) as error:
        _note(observer, f"no example job: {error.message}", screen)
        return
    observer.job = JobObserver(client, job_id)
    observer.notes = ("When the job ends, its answer is shown beside the base model's.",)
    last = watch(_while_server_lives(observer), screen, until=_job_is_over, transient=True)
    if last.job and last.job.status == "succeeded":
        with screen.status("asking both models the same question"):
            observer.comparison = example_job.compare(client, client.job(job_id))
        observer.notes = ()
        if not screen.is_terminal:
            _print_comparison(observer.comparison, screen)
    elif last.job:
        _note(observer, f"{job_id} {last.job.status}: {last.job.message}", screen)


def _note(observer: Observer, text: str, screen: Console) -> None:
    """Show a line below the display, or print it where there is none."""
    observer.notes = (text,)
    if not screen.is_terminal:
        screen.print(text, markup=False, soft_wrap=True)


def _job_is_over(state: State) -> bool:
    return state.job is not None and state.job.over


def _print_comparison(said: Comparison, screen: Console) -> None:
    for name, text in (
        ("asked", said.question),
        (said.base, said.base_answer),
        (said.adapter, said.adapter_answer),
    ):
        screen.print(f"{name}: {text.strip()}", markup=False, soft_wrap=True)


def _while_server_lives(observer: Observer) -> Iterator[State]:
    """States until the server's process ends. A look that fails is taken again: the server may be busy or ending."""
    while _server_lives():
        try:
            state = observer.look()
        except CoserveError:
            time.sleep(_RETRY_SECONDS)
            continue
        yield state
