"""`coserve plan MODEL`: which chips, how many, at what cost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coserve.cli.table import show_table
from coserve.errors import InvalidRequest

if TYPE_CHECKING:
    from coserve.chips import ChipSpec
    from collections.abc import Sequence

    from coserve.planner.economics import Prices
    from coserve.planner.plan import Refusal
    from coserve.planner.report import Report
    from coserve.planner.shape import ModelShape
    from coserve.planner.trace import Trace
    from coserve.planner.training_plan import TrainingQuestion


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a config.json or its folder, or 70B.")],
    rps: Annotated[float | None, typer.Option(help="Requests a second.")] = None,
    prompt: Annotated[float, typer.Option(metavar="TOKENS", help="Of a prompt.")] = 1000,
    output: Annotated[float, typer.Option(metavar="TOKENS", help="Of an answer.")] = 300,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of requests: gives rate, lengths and peak.")
    ] = None,
    ttft: Annotated[str | None, typer.Option(metavar="500ms", help="Goal: time to first token, 99th of 100.")] = None,
    itl: Annotated[str | None, typer.Option(metavar="25ms", help="Goal: mean time between tokens, 99th of 100.")] = None,
    peak: Annotated[float | None, typer.Option(help="Load to build for, over the average (default 1).")] = None,
    train_tokens: Annotated[
        str | None, typer.Option(metavar="5B", help="Tokens to train on; 50M/day with --rps: one cluster for both.")
    ] = None,
    method: Annotated[str, typer.Option(help="Of training: full, lora or qlora.")] = "lora",
    deadline: Annotated[str, typer.Option(metavar="24h", help="To be trained in.")] = "24h",
    chip: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these chips; `this` = this machine.")] = None,
    weights: Annotated[str | None, typer.Option(help="Number format (default: the cheaper of 16 bits and 8).")] = None,
    cache: Annotated[str, typer.Option(help="Number format of keys and values.")] = "bfloat16",
    engine: Annotated[str, typer.Option(help="vllm, sglang or tensorrt-llm.")] = "vllm",
    prefix_hit: Annotated[float, typer.Option(help="Share of prompts that a prefix cache holds.")] = 0.0,
    drafted: Annotated[int, typer.Option(min=0, help="Tokens that speculative decoding guesses a step.")] = 0,
    acceptance: Annotated[float, typer.Option(help="Share of guesses that hold.")] = 0.7,
    disaggregated: Annotated[bool, typer.Option("--disaggregated", help="Prompts on chips of their own.")] = False,
    price_in: Annotated[float | None, typer.Option(metavar="USD", help="Charged a million input tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(metavar="USD", help="Charged a million output tokens.")] = None,
    chip_price: Annotated[
        list[str] | None, typer.Option(metavar="NAME=USD", help="Of a chip an hour, instead of the catalogue's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with tables and plots.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plots as a picture.")] = None,
) -> None:
    """Say which chips, how many, at what cost: to serve, to train, or both on one cluster."""
    from coserve.planner import report
    from coserve.planner.plan import Question, plan_serving
    from coserve.planner.quantities import seconds
    from coserve.planner.serving import Limits
    from coserve.planner.shape import load_shape
    from coserve.planner.training_plan import plan_shared, plan_training

    shape = load_shape(model)
    chips = _chips(chip, weights)
    question = None
    if rps is not None or trace is not None:
        load = _load(rps, prompt, output, trace, peak)
        question = Question(
            shape=shape,
            rate=load.rate,
            requests=replace(
                load.requests,
                cached=prefix_hit,
                drafted=drafted,
                acceptance=acceptance if drafted else 0.0,
                elsewhere=disaggregated,
            ),
            limits=Limits(seconds(ttft, "ttft") if ttft else math.inf, seconds(itl, "itl") if itl else math.inf),
            peak=load.peak,
            weights=weights,
            cache=cache,
            engine=engine,
            prices=_prices(price_in, price_out),
            price_per_hour=_chip_prices(chip_price or []),
        )
    training = _training(shape, train_tokens, method, deadline) if train_tokens else None
    if question is None and training is None:
        raise InvalidRequest("Say what is wanted: --rps or --trace to serve, --train-tokens to train, or both.")
    answer = plan_serving(question, chips) if question else None
    trained = plan_training(training, chips) if training else None
    shared = plan_shared(answer, training) if answer and training else ()
    result = report.Report(shape, answer, trained, shared)
    if html or png:
        from coserve.planner import plots

        if png:
            plots.write_png(result, png)
        if html:
            plots.write_html(result, html)
        typer.echo(f"Wrote {' and '.join(str(path) for path in (html, png) if path)}", err=True)
    if as_json:
        typer.echo(json.dumps(report.as_json(result), indent=2))
    elif not (html or png):
        _show(result)


def _show(result: Report) -> None:
    from coserve.planner import report

    typer.echo("\n".join(report.headline(result)))
    if result.answer:
        show_table(report.SERVING_COLUMNS, [report.serving_cells(plan) for plan in result.answer.plans])
        _show_refusals("serve it", result.answer.refusals)
    if result.trained:
        plans, refusals = result.trained
        typer.echo("\nTraining")
        show_table(report.TRAINING_COLUMNS, [report.training_cells(plan) for plan in plans])
        _show_refusals("train it", refusals)
    if result.shared:
        typer.echo("\nOne cluster for both, beside two")
        show_table(report.SHARED_COLUMNS, [report.shared_cells(shared) for shared in result.shared])


def _show_refusals(what: str, refusals: Sequence[Refusal]) -> None:
    if refusals:
        typer.echo(f"Cannot {what}:")
    for refusal in refusals:
        typer.echo(f"  {refusal.chip.name}: {refusal.why}")


def _chips(names: list[str] | None, weights: str | None) -> list[ChipSpec] | None:
    from coserve.chips import find_chip

    if not names:
        return None
    found = []
    for name in names:
        if name == "this":
            from coserve.planner.this_machine import this_machine

            found.append(this_machine(weights or "bfloat16"))
        else:
            found.append(find_chip(name))
    return found


def _load(rps: float | None, prompt: float, output: float, trace: Path | None, peak: float | None) -> Trace:
    """Rate, lengths and peak: as given, or a trace's where they are not."""
    from coserve.planner.serving import Requests
    from coserve.planner.trace import Trace, read_trace

    if trace is None:
        return Trace(Requests(prompt, output), rps or 0.0, 1.0 if peak is None else peak)
    found = read_trace(trace)
    return Trace(found.requests, rps if rps is not None else found.rate, found.peak if peak is None else peak)


def _training(shape: ModelShape, train_tokens: str, method: str, deadline: str) -> TrainingQuestion:
    from coserve.planner.quantities import seconds, tokens
    from coserve.planner.training import Run
    from coserve.planner.training_plan import TrainingQuestion

    count, period = tokens(train_tokens, "train-tokens")
    return TrainingQuestion(shape, count, period or seconds(deadline, "deadline"), Run(method))  # type: ignore[arg-type]


def _prices(price_in: float | None, price_out: float | None) -> Prices | None:
    from coserve.planner.economics import Prices

    if price_in is None and price_out is None:
        return None
    if min(price_in or 0.0, price_out or 0.0) < 0:
        raise InvalidRequest("a price must not be below 0", param="price-in")
    return Prices(price_in or 0.0, price_out or 0.0)


def _chip_prices(given: list[str]) -> dict[str, float]:
    from coserve.chips import find_chip

    prices = {}
    for text in given:
        name, _, price = text.rpartition("=")
        try:
            prices[find_chip(name).name] = float(price)
        except ValueError as error:
            raise InvalidRequest(f"chip-price: {text!r} is not NAME=USD", param="chip-price") from error
    return prices
