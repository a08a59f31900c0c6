"""A scheduler without a model: requests that get token 1 from every step that they asked."""

from __future__ import annotations

from coserve.engine import EngineConfig, Request, SamplingParams
from coserve.engine.active import ActiveRequest
from coserve.engine.blocks import BlockPool
from coserve.engine.plan import Plan
from coserve.engine.protection import Protection
from coserve.engine.scheduler import Scheduler


def active(
    prompt: int, name: str = "m", *, arrived: float = 0.0, max_tokens: int = 100, **who: object
) -> ActiveRequest:
    request = Request(tuple(range(prompt)), SamplingParams(max_tokens=max_tokens), name, **who)
    return ActiveRequest(request, None, None, max_tokens, frozenset(), lambda output: None, arrived)


def new_scheduler(blocks: int = 64, **config) -> Scheduler:
    return Scheduler(EngineConfig(**config).on("cpu"), BlockPool(blocks))


def settle(plan: Plan) -> None:
    """What a step does: the segments are computed, and each that asked gets a token."""
    for request, segment in plan.chosen:
        request.computed += len(segment.tokens)
        if segment.sample:
            request.append(1)


def step(scheduler: Scheduler, now: float = 0.0, max_tokens: int = 64, protection: Protection | None = None) -> Plan:
    """One step; lower priorities ride along as `protection` lets them, or all. Those that are done leave."""
    plan = scheduler.plan(max_tokens, now)
    riders = (
        protection.riders(plan, scheduler.config.max_batch_tokens, now)
        if protection
        else [(r, 1 if r.decoding else r.remaining) for r in plan.lower]
    )
    for request, length in riders:
        scheduler.take(plan, request, length, now)
    settle(plan)
    for request in [r for r in scheduler.running if r.completion_tokens >= r.max_tokens]:
        scheduler.release(request)
    return plan
