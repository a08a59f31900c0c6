"""/v1/chips and /v1/plan: the catalogue and the planner, in the words of `coserve chips` and `coserve plan --json`."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import MISSING, asdict, fields
from multiprocessing import get_context
from typing import Any, get_type_hints

from pydantic import create_model
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.chips import catalogue
from coserve.errors import InvalidRequest
from coserve.planner.ask import THIS, Ask, plan_by_name
from coserve.service.bodies import Body, parse


def _body() -> type[Body]:
    """`Ask`'s fields and defaults, without what would read files of the server."""
    types = get_type_hints(Ask)
    known = {f.name: (types[f.name], ... if f.default is MISSING else f.default) for f in fields(Ask)}
    del known["trace"]
    return create_model("PlanBody", __base__=Body, **known)  # type: ignore[call-overload, no-any-return]


PlanBody = _body()


async def list_chips(http: Request) -> Response:
    return JSONResponse({"object": "list", "data": [asdict(chip) for chip in catalogue()]})


async def create_plan(http: Request) -> Response:
    body = await parse(http, PlanBody)
    ask = Ask(**body.model_dump())
    if THIS in ask.chips:
        raise InvalidRequest("'chips': this machine can be measured on the command line only.", param="chips")
    return JSONResponse(await run_in_threadpool(_elsewhere, ask))


def _elsewhere(ask: Ask) -> dict[str, Any]:
    """In a process of its own, and a low-priority one: a plan is a second of Python, and decoding must not feel it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        return pool.submit(plan_by_name, ask).result()
