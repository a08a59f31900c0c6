"""For those who run the server: /health, /metrics, /coserve/stats, /coserve/upstreams."""

from __future__ import annotations

import dataclasses
import math
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from coserve.service.service import Service


def _version() -> str:
    try:
        return version("coserve")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


VERSION = _version()


async def health(http: Request) -> Response:
    service: Service = http.app.state.service
    engine = service.engine
    return JSONResponse({"status": "ok", "model": engine.name, "device": str(engine.device), "version": VERSION})


async def metrics(http: Request) -> Response:
    service: Service = http.app.state.service
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})


async def stats(http: Request) -> Response:
    """The engine's statistics, field by field as `EngineStats` names them."""
    service: Service = http.app.state.service
    return JSONResponse(plain(dataclasses.asdict(service.engine.stats())))


async def upstreams(http: Request) -> Response:
    """How each upstream is: its breaker, what runs there, what became of its requests, how fast it was."""
    service: Service = http.app.state.service
    return JSONResponse(service.upstreams.state())


def plain(value: Any) -> Any:
    """The same with null for what JSON cannot say."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
