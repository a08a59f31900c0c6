"""What may be wrong with an input file, told by its line before anything is run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from coserve.errors import InvalidRequest
from coserve.service.batches.requests import Line, lines
from coserve.service.bodies import Body, parse_json

MOST_TOLD = 100


@dataclass(frozen=True)
class Mistake:
    """In OpenAI's words."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rules:
    """What the lines of a file must keep to."""

    endpoint: str  # their `url`
    models: frozenset[str]  # that the key may use
    most_requests: int | None  # None: as many as the file holds
    line_bytes: int


class RequestLine(Body):
    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass
class Report:
    """How many requests a file has, and the first mistakes in it."""

    total: int
    mistakes: list[Mistake]


def check(path: Path, rules: Rules) -> Report:
    """Read all of the file. Raises `OSError`."""
    report = Report(0, [])
    ids: set[bytes] = set()
    for line in lines(path, rules.line_bytes):
        report.total += 1
        if rules.most_requests is not None and report.total > rules.most_requests:
            report.mistakes = [_too_many(rules.most_requests)]
            return report
        for mistake in _mistakes(line, rules, ids):
            report.mistakes.append(mistake)
            if len(report.mistakes) == MOST_TOLD:
                return report
    if report.total == 0:
        report.mistakes = [Mistake("empty_file", "The file has no request.")]
    return report


def _too_many(most: int) -> Mistake:
    return Mistake("too_many_requests", f"The file has more requests than a batch may have at this tier: {most}.")


def _mistakes(line: Line, rules: Rules, ids: set[bytes]) -> Iterator[Mistake]:
    """Those of one line. `ids` are digests of the names before it, and get its own."""
    if len(line.text) > rules.line_bytes:
        yield Mistake("line_too_long", f"The line has more than {rules.line_bytes} bytes.", None, line.number)
        return
    try:
        said = parse_json(line.text, RequestLine)
    except InvalidRequest as error:
        yield _malformed(error, line.number)
        return
    digest = hashlib.blake2b(said.custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if digest in ids:
        message = f"The custom_id {said.custom_id!r} is that of an earlier line; each must have its own."
        yield Mistake("duplicate_custom_id", message, "custom_id", line.number)
    ids.add(digest)
    if said.url != rules.endpoint:
        message = f"'url' is {said.url[:100]!r}; the batch's endpoint is {rules.endpoint!r}."
        yield Mistake("invalid_url", message, "url", line.number)
    yield from _model_mistakes(said.body.get("model"), rules, line.number)


def _model_mistakes(model: Any, rules: Rules, number: int) -> Iterator[Mistake]:
    if not isinstance(model, str):
        yield Mistake("missing_required_parameter", "'body.model' is required: a name.", "body.model", number)
    elif model not in rules.models:
        yield Mistake("model_not_found", f"The model {model[:100]!r} does not exist.", "body.model", number)


def _malformed(error: InvalidRequest, number: int) -> Mistake:
    if error.code == "invalid_json":
        return Mistake("invalid_json_line", "The line is not valid JSON.", None, number)
    if error.param is None:
        return Mistake("invalid_json_line", "The line is not a JSON object.", None, number)
    return Mistake(error.code or f"invalid_{error.param.partition('.')[0]}", error.message, error.param, number)
