"""Keeping the display up to date: a live screen on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console

from coserve.display.lines import line
from coserve.display.screen import screen
from coserve.display.state import State

REFRESH_SECONDS = 0.25
LINE_SECONDS = 5.0


def watch(
    states: Iterator[State],
    console: Console,
    *,
    until: Callable[[State], bool] = lambda state: False,
    transient: bool = False,
    line_seconds: float = LINE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> State:
    """Show states until one satisfies `until` (or there are no more), and return that one.

    `states` makes a fresh state whenever it is asked; it is asked about four times a second. A `transient` screen
    is wiped at the end, for another to take its place.
    """
    if console.is_terminal:
        return _live(states, console, until, transient, sleep)
    return _plain(states, console, until, line_seconds, sleep)


def _live(
    states: Iterator[State],
    console: Console,
    until: Callable[[State], bool],
    transient: bool,
    sleep: Callable[[float], None],
) -> State:
    from rich.live import Live

    state = State()
    with Live(screen(state), console=console, auto_refresh=False, transient=transient) as live:
        for state in states:
            live.update(screen(state), refresh=True)
            if until(state):
                break
            sleep(REFRESH_SECONDS)
    return state


def _plain(
    states: Iterator[State],
    console: Console,
    until: Callable[[State], bool],
    line_seconds: float,
    sleep: Callable[[float], None],
) -> State:
    state = State()
    due = 0.0  # in seconds of waiting, so that tests need no clock
    waited = 0.0
    for state in states:
        over = until(state)
        if over or waited >= due:
            console.print(line(state), markup=False, highlight=False, soft_wrap=True)
            due = waited + line_seconds
        if over:
            break
        sleep(REFRESH_SECONDS)
        waited += REFRESH_SECONDS
    return state
