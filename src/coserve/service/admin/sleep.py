"""/sleep, /wake_up, /is_sleeping: another program has the GPU's memory for a while. Paths are vLLM's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.errors import InvalidRequest
from coserve.service.admin.desk import actor_of
from coserve.service.auth.audit import record

if TYPE_CHECKING:
    from coserve.service.service import Service


async def sleep(http: Request) -> Response:
    """Answers when the memory is free."""
    _check(http, "level", "1", "weights and KV cache are kept in main memory")
    freed = await asyncio.to_thread(_service(http).engine.sleep)
    await _note(http, "engine.slept")
    return JSONResponse({"is_sleeping": True, "freed_bytes": freed})


async def wake_up(http: Request) -> Response:
    """Answers when requests are served again."""
    _check(http, "tags", None, "all wakes at once")
    await asyncio.to_thread(_service(http).engine.wake)
    await _note(http, "engine.woken")
    return JSONResponse({"is_sleeping": False})


async def is_sleeping(http: Request) -> Response:
    return JSONResponse({"is_sleeping": _service(http).engine.asleep})


def _service(http: Request) -> Service:
    service: Service = http.app.state.service
    return service


def _check(http: Request, name: str, known: str | None, why: str) -> None:
    """vLLM's other modes are not known here."""
    value = http.query_params.get(name, known)
    if value != known:
        right = "left out" if known is None else f"{known} or left out"
        raise InvalidRequest(f"{name} is {value!r}; it must be {right}: {why}.", param=name)


async def _note(http: Request, what: str) -> None:
    service = _service(http)
    async with service.database.write() as session:
        record(session, actor_of(http), what, service.engine.name, {})
