"""The two result files: replies and errors, each in the order of the input."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from coserve.service.batches.requests import Requests
from coserve.service.batches.results import Result, Results
from coserve.service.batches.states import Files
from coserve.service.compact import dumps


@dataclass(frozen=True)
class Place:
    """A request's place in its batch."""

    batch_id: str
    index: int  # from 0

    @property
    def line_id(self) -> str:
        return f"batch_req_{self.batch_id.partition('-')[2]}-{self.index}"

    @property
    def usage_id(self) -> str:
        """Of its row in the ledger: the same however often it is run, so that it is billed once."""
        return f"{self.batch_id}-{self.index}"


def answered(place: Place, custom_id: str, status: int, body: bytes) -> Result:
    """The result of a request that was answered, with a completion or an error; `body` is the reply's JSON."""
    head = dumps({"id": place.line_id, "custom_id": custom_id})[:-1]
    response = dumps({"status_code": status, "request_id": place.usage_id})[:-1]
    return Result(status < 400, b'%s,"response":%s,"body":%s},"error":null}' % (head, response, body))


def _unanswered(place: Place, custom_id: str, why: dict[str, Any]) -> bytes:
    return dumps({"id": place.line_id, "custom_id": custom_id, "response": None, "error": why})


EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED = {"code": "batch_cancelled", "message": "This request was not executed before the batch was cancelled."}


def write_files(batch_id: str, requests: Requests, results: Results, directory: Path, why: dict[str, Any]) -> Files:
    """Both files, complete and on the disk. `why` is said of each request that has no result. Raises `OSError`."""
    output, error = (directory / f"{batch_id}_{name}.jsonl" for name in ("output", "error"))
    with output.open("wb") as replies, error.open("wb") as errors:
        for index in range(len(results)):
            result = results.read(index)
            if result is None:
                line = _unanswered(Place(batch_id, index), requests[index].custom_id, why)
                result = Result(False, line)
            (replies if result.ok else errors).write(result.line + b"\n")
        present = _close(replies), _close(errors)
    return Files(output if present[0] else None, error if present[1] else None, results.completed, results.failed)


def _close(file: IO[bytes]) -> bool:
    """Whether there is anything in the file, which is on the disk then."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell() > 0
