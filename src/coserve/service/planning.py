"""/v1/chips and /v1/plan: the catalogue and the planner, in the words of `coserve chips` and `coserve plan --json`."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from coserve.chips import catalogue
from coserve.errors import InvalidRequest
from coserve.planner.ask import THIS, Ask, plan_by_name
from coserve.service.bodies import Body, parse


class PlanBody(Body):
    """As `Ask`, without what would read files or measure the machine of the server."""

    model: str
    rps: float | None = None
    prompt: float = 1000
    output: float = 300
    ttft: str | None = None
    itl: str | None = None
    peak: float | None = None
    train_tokens: str | None = None
    method: Literal["full", "lora", "qlora"] = "lora"
    deadline: str = "24h"
    chips: tuple[str, ...] = ()
    weights: str | None = None
    cache: str = "bfloat16"
    engine: str = "vllm"
    prefix_hit: float = 0.0
    drafted: int = 0
    acceptance: float = 0.7
    disaggregated: bool = False
    price_in: float | None = None
    price_out: float | None = None
    chip_price: dict[str, float] | None = None


async def list_chips(http: Request) -> Response:
    return JSONResponse({"object": "list", "data": [asdict(chip) for chip in catalogue()]})


async def create_plan(http: Request) -> Response:
    body = await parse(http, PlanBody)
    if THIS in body.chips:
        raise InvalidRequest("'chips': this machine can be measured on the command line only.", param="chips")
    return JSONResponse(await run_in_threadpool(_elsewhere, Ask(**body.model_dump())))


def _elsewhere(ask: Ask) -> dict[str, Any]:
    """In a process of its own, and a low-priority one: a plan is a second of Python, and decoding must not feel it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        return pool.submit(plan_by_name, ask).result()
