"""`coserve train DATA.jsonl`: a fine-tuning job on a running server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from coserve.cli.options import ApiKey, Home, Url, home_directory
from coserve.errors import DataError, InvalidRequest


def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA.jsonl", help="Chats ({messages: ...}) or {prompt, completion} lines."),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model to tune (default: the server's base model).")
    ] = None,
    suffix: Annotated[str | None, typer.Option(metavar="TEXT", help="Part of the new model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times to go through the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples an optimizer step.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA matrices.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate (default: by the model's width, 2e-4 for 4096 and wider).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of the data and the first weights.")] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Examples to measure on, never trained on.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job ends.")] = False,
    home: Home = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Fine-tune a model of a running server on DATA.jsonl."""
    from coserve.address import find_server
    from coserve.client import Client

    for path in filter(None, (data, validation)):
        check_examples(path)
    hyperparameters = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "lora_rank": rank,
    }
    with Client(find_server(home_directory(home), url=url, api_key=api_key)) as client:
        body: dict[str, Any] = {
            "model": model or client.models()[0]["id"],
            "training_file": client.upload(data)["id"],
            "suffix": suffix,
            "seed": seed,
            "method": _method(hyperparameters),
            "validation_file": client.upload(validation)["id"] if validation else None,
        }
        job = client.create_job(**{name: value for name, value in body.items() if value is not None})
        typer.echo(f"{job['id']} {job['status']}: {job['model']} learns {data.name}")
        if follow:
            from coserve.cli.follow import follow_job

            follow_job(client, job["id"])
        else:
            typer.echo(f"Follow it: coserve jobs follow {job['id']}")


def _method(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Supervised fine-tuning with what was given; the server chooses the rest."""
    given = {name: value for name, value in hyperparameters.items() if value is not None}
    return {"type": "supervised", "supervised": {"hyperparameters": given}}


def check_examples(path: Path) -> None:
    """Read the file as the server will, so that a mistake shows at once and with the file's name.

    Raises `DataError` for a line that cannot be used, `InvalidRequest` for a file that cannot be read.
    """
    if not path.is_file():
        raise InvalidRequest(f"{path} is {'a directory' if path.is_dir() else 'not there'}.")
    if find_spec("coserve.training") is None:
        return
    from coserve.training import read_examples

    try:
        read_examples(path)
    except DataError as error:
        raise DataError(f"{path}: {error.message}") from error
    except OSError as error:
        raise InvalidRequest(f"Cannot read {path}: {error.strerror}.") from error
