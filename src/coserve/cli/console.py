"""How commands talk to people: errors are one line on standard error and an exit code.

2: what was asked for cannot be done (an unknown option, a file that is not there, bad data); 1: it was tried
and failed (no server answers, the job failed); 130: Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from coserve.errors import CoserveError, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console


class Commands(TyperGroup):
    """A group of commands in the order in which they were added, whose known errors need no traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CoserveError as error:
            fail(error.message, 2 if isinstance(error, InvalidRequest) else 1)


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with one line."""
    typer.echo(f"coserve: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def console() -> Console:
    """Standard output, for what is shown."""
    from rich.console import Console

    return Console(highlight=False)
