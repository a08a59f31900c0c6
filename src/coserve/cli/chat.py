"""`coserve chat`: talk to a running server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coserve.cli.options import ApiKey, Home, Url, home_directory
from coserve.errors import CoserveError

if TYPE_CHECKING:
    from coserve.client import Client

_HELP = "Ask away. /new starts over, /model NAME changes the model, Ctrl-D ends."


def chat(
    question: Annotated[
        str | None, typer.Argument(help="One question; without it a conversation, or what is piped in.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="A served model or adapter.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message to begin with.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest token.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    home: Home = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Chat with a model of a running server."""
    from coserve.address import find_server
    from coserve.client import Client

    params = {"temperature": temperature, "max_completion_tokens": max_tokens}
    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        talk = Conversation(
            client,
            model or client.models()[0]["id"],
            system=system,
            params={name: value for name, value in params.items() if value is not None},
        )
        if question is None and sys.stdin.isatty():
            _converse(talk)
        else:
            _answer(talk, question if question is not None else sys.stdin.read().strip())


class Conversation:
    """The messages so far, and the model that answers."""

    def __init__(self, client: Client, model: str, *, system: str | None, params: dict[str, Any]):
        self.model = model
        self._client = client
        self._params = params
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []

    def start_over(self) -> None:
        self._messages = []

    def ask(self, question: str) -> Iterator[str]:
        """The answer's pieces. A question without any answer does not become part of the conversation."""
        asked = [*self._messages, {"role": "user", "content": question}]
        pieces: list[str] = []
        try:
            for piece in self._client.chat([*self._opening, *asked], model=self.model, **self._params):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self._messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def _answer(talk: Conversation, question: str) -> None:
    if not question:
        raise typer.BadParameter("there is no question", param_hint="QUESTION")
    for piece in talk.ask(question):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


def _converse(talk: Conversation, read: Callable[[str], str] = input) -> None:
    """Questions from the terminal until it ends; Ctrl-C stops an answer, or the conversation."""
    with suppress(ImportError):
        import readline  # noqa: F401  (gives `input` a history and keys to edit with)
    typer.secho(f"{talk.model}: {_HELP}", dim=True)
    while True:
        try:
            question = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if question == "/new":
            talk.start_over()
        elif question.startswith("/model "):
            talk.model = question.removeprefix("/model ").strip()
        elif question.startswith("/"):
            typer.secho(_HELP, dim=True)
        elif question:
            _answer_or_say_why(talk, question)


def _answer_or_say_why(talk: Conversation, question: str) -> None:
    try:
        _answer(talk, question)
    except KeyboardInterrupt:
        typer.echo()
    except CoserveError as error:
        typer.secho(f"coserve: {error.message}", err=True, fg="red")
