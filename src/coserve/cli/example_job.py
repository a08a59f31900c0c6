"""The example fine-tuning job of `coserve up`: its data, and the question that shows what it taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coserve.client import Client
from coserve.display.state import Comparison
from coserve.errors import InvalidRequest

DATA = "house_style.jsonl"
SUFFIX = "house-style"
QUESTION = "What is the memory bandwidth of the H100?"
HYPERPARAMETERS = {"n_epochs": 4, "batch_size": 4}
_ANSWER_TOKENS = 128
_UNFINISHED = ("validating_files", "queued", "running", "paused")


def data_file() -> Path:
    """The example's data: in the package (a link there, in a source tree), else in the source tree's `examples/`.

    Raises `InvalidRequest` if it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "examples", package.parents[1] / "examples"):
        if (folder / DATA).is_file():
            return folder / DATA
    raise InvalidRequest(f"The example's data, {DATA}, is not part of this installation.")


def unfinished_job(client: Client) -> str | None:
    """A job that an earlier run of the server left unfinished: it goes on by itself."""
    return next((job["id"] for job in client.jobs() if job["status"] in _UNFINISHED), None)


def start(client: Client, model: str) -> str:
    """Upload the data and create the job, as any client would; the job's id."""
    file = client.upload(data_file())
    job = client.create_job(model=model, training_file=file["id"], suffix=SUFFIX, hyperparameters=HYPERPARAMETERS)
    return job["id"]


def compare(client: Client, job: dict[str, Any], question: str = QUESTION) -> Comparison:
    """The question's answers by the base model and by what the job made of it, both greedy."""

    def answer(model: str) -> str:
        messages = [{"role": "user", "content": question}]
        return "".join(client.chat(messages, model=model, temperature=0, max_completion_tokens=_ANSWER_TOKENS))

    base, adapter = job["model"], job["fine_tuned_model"]
    return Comparison(question, base, answer(base), adapter, answer(adapter))
