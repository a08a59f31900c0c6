"""Reading what a client sends: bodies within a limit, JSON into models, mistakes into one clear line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from coserve.errors import InvalidRequest
from coserve.service.errors import ClientGone, PayloadTooLarge


class Body(BaseModel):
    """A JSON body or a part of one: types are meant as they are written, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""Labels of a client's own, as large as OpenAI lets them be."""

B = TypeVar("B", bound=Body)


async def read_chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises `PayloadTooLarge` above `limit` bytes, `ClientGone` if it breaks off."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        if chunk:
            yield chunk


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request's body is larger than the limit of {limit} bytes.")


async def read_body(request: Request, limit: int) -> bytes:
    return b"".join([chunk async for chunk in read_chunks(request, limit)])


async def parse(request: Request, model: type[B]) -> B:
    """The JSON body as `model`. Raises `InvalidRequest` whose `param` is the field at fault."""
    body = await read_body(request, request.app.state.service.settings.max_body_bytes)
    return parse_json(body, model)


def parse_json(body: bytes, model: type[B]) -> B:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, body) from None  # the cause would carry the whole input


def _explain(error: ValidationError, body: bytes) -> InvalidRequest:
    mistakes = error.errors(include_url=False, include_context=False)
    if mistakes[0]["type"] == "json_invalid":
        return InvalidRequest("The request's body is not valid JSON.", code="invalid_json")
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        raw = None
    # of a union's alternatives the one that went furthest is most likely what was meant
    deepest = max(mistakes, key=lambda mistake: len(_path(mistake, raw)))
    param = _written(_path(deepest, raw))
    same = [mistake for mistake in mistakes if _written(_path(mistake, raw)) == param]
    wanted = " or ".join(dict.fromkeys(_lower_first(mistake["msg"]) for mistake in same))
    if param is None:
        return InvalidRequest(f"The request's body is wrong: {wanted}.")
    if same[0]["type"] == "missing":
        return InvalidRequest(f"'{param}' is required.", param=param, code="missing_required_parameter")
    if same[0]["type"] == "extra_forbidden":
        return InvalidRequest(f"'{param}' is not known here.", param=param, code="unknown_parameter")
    return InvalidRequest(f"'{param}': {wanted} (got {_short(same[0]['input'])}).", param=param)


def _path(mistake: ErrorDetails, raw: Any) -> list[str | int]:
    """The steps from the body's root to a mistake.

    Pydantic's location also names the alternatives of unions ("str", "list[str]"), which are in no body: only
    the steps that lead somewhere in `raw` count, and the name of a field that is missing.
    """
    path: list[str | int] = []
    for step in mistake["loc"]:
        inside = (isinstance(raw, dict) and isinstance(step, str) and step in raw) or (
            isinstance(raw, list) and isinstance(step, int) and step < len(raw)
        )
        if inside:
            path.append(step)
            raw = raw[step]
        elif mistake["type"] == "missing" and isinstance(raw, dict) and step == mistake["loc"][-1]:
            path.append(step)
    return path


def _written(path: list[str | int]) -> str | None:
    """A path as a client would write it: `messages[0].content`; None for the root."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or None


def _lower_first(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:].rstrip(".")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unsupported(param: str, what: str | None = None) -> InvalidRequest:
    """For what OpenAI's API has and coserve has not yet."""
    return InvalidRequest(f"{what or repr(param)} is not supported yet.", param=param, code="unsupported_parameter")
