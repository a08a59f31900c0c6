"""A question in the words that people use, the same in Python, on the command line and over HTTP, and its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coserve.chips import ChipSpec, catalogue, find_chip
from coserve.errors import InvalidRequest
from coserve.planner.economics import Prices
from coserve.planner.quantities import seconds, tokens
from coserve.planner.report import Report, Row, as_json
from coserve.planner.serving import Limits, Requests
from coserve.planner.serving_plan import Question, plan_serving
from coserve.planner.shape import ModelShape, load_shape, named_shape
from coserve.planner.trace import Trace, read_trace
from coserve.planner.training import Method, Run
from coserve.planner.training_plan import TrainingQuestion, plan_shared, plan_training

THIS = "this"
"""The name that asks for this machine, measured."""


@dataclass(frozen=True)
class Ask:
    """`rps` or `trace` asks for serving, `train_tokens` for training, both for one cluster beside two."""

    model: str  # a hub id, a path to a config.json or its folder, or a size such as 70B
    rps: float | None = None  # requests a second
    prompt: float = 1000  # tokens
    output: float = 300  # tokens
    trace: Path | None = None  # CSV of requests, for rate, lengths and peak
    ttft: str | None = None  # goal for 99 of 100, such as 500ms
    itl: str | None = None
    peak: float | None = None  # load to build for, over the average
    train_tokens: str | None = None  # 5B, or 50M/day
    method: Method = "lora"
    deadline: str = "24h"
    chips: Sequence[str] = ()  # all of the catalogue unless named
    weights: str | None = None
    cache: str = "bfloat16"
    engine: str = "vllm"
    prefix_hit: float = 0.0
    drafted: int = 0
    acceptance: float = 0.7
    disaggregated: bool = False
    price_in: float | None = None  # USD a million tokens
    price_out: float | None = None
    chip_price: Mapping[str, float] | None = None  # USD of a chip an hour, by name


def plan(ask: Ask, shape: ModelShape | None = None) -> Report:
    """The answer, for `shape` if given instead of what `ask.model` names.

    Raises `InvalidRequest`, in one line that says what was wrong and what would be right.
    """
    if ask.rps is None and ask.trace is None and ask.train_tokens is None:
        raise InvalidRequest("say what is wanted: rps or trace to serve, train-tokens to train, or both", param="rps")
    shape = shape or load_shape(ask.model)
    question = _question(ask, shape) if ask.rps is not None or ask.trace is not None else None
    training = _training(ask, shape) if ask.train_tokens is not None else None
    chips = _chips(ask)
    answer = plan_serving(question, chips) if question else None
    trained = plan_training(training, chips) if training else None
    shared = plan_shared(answer, trained[0]) if answer and trained else ()
    return Report(shape, answer, trained, shared)


def plan_by_name(ask: Ask) -> Row:
    """The answer as JSON, of a known model or a size: no file is looked at."""
    return as_json(plan(ask, named_shape(ask.model)))


def _chips(ask: Ask) -> list[ChipSpec]:
    """Those named, or the whole catalogue, at the prices given."""
    prices = _chip_prices(ask)
    chips = [_chip(name, ask.weights) for name in ask.chips] or catalogue()
    return [chip.at_price(prices[chip.name]) if chip.name in prices else chip for chip in chips]


def _chip(name: str, weights: str | None) -> ChipSpec:
    if name != THIS:
        return find_chip(name)
    from coserve.planner.this_machine import this_machine  # needs torch

    return this_machine(weights or "bfloat16")


def _question(ask: Ask, shape: ModelShape) -> Question:
    load = _load(ask)
    return Question(
        shape=shape,
        rate=load.rate,
        requests=Requests(
            prompt=load.requests.prompt,
            output=load.requests.output,
            cached=ask.prefix_hit,
            drafted=ask.drafted,
            acceptance=ask.acceptance if ask.drafted else 0.0,
            elsewhere=ask.disaggregated,
        ),
        limits=Limits(
            ttft=seconds(ask.ttft, "ttft") if ask.ttft else math.inf,
            tpot=seconds(ask.itl, "itl") if ask.itl else math.inf,
        ),
        peak=load.peak,
        weights=ask.weights,
        cache=ask.cache,
        engine=ask.engine,
        prices=_prices(ask),
    )


def _load(ask: Ask) -> Trace:
    """Rate, lengths and peak: as given, or a trace's where they are not."""
    if ask.trace is None:
        return Trace(Requests(ask.prompt, ask.output), ask.rps or 0.0, 1.0 if ask.peak is None else ask.peak)
    found = read_trace(ask.trace)
    rate = found.rate if ask.rps is None else ask.rps
    return Trace(found.requests, rate, found.peak if ask.peak is None else ask.peak)


def _training(ask: Ask, shape: ModelShape) -> TrainingQuestion:
    count, period = tokens(ask.train_tokens or "", "train-tokens")
    return TrainingQuestion(shape, count, period or seconds(ask.deadline, "deadline"), Run(ask.method))


def _prices(ask: Ask) -> Prices | None:
    if ask.price_in is None and ask.price_out is None:
        return None
    if not min(ask.price_in or 0.0, ask.price_out or 0.0) >= 0:
        raise InvalidRequest("a price must not be below 0", param="price-in")
    return Prices(ask.price_in or 0.0, ask.price_out or 0.0)


def _chip_prices(ask: Ask) -> dict[str, float]:
    prices = {find_chip(name).name: usd for name, usd in (ask.chip_price or {}).items()}
    for name, usd in prices.items():
        if not usd > 0:
            raise InvalidRequest(f"chip-price: {name} must cost more than 0, not {usd:g}", param="chip-price")
    return prices
