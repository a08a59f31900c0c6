"""`coserve plan MODEL`: which chips, how many, at what cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coserve.cli.table import show_table
from coserve.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coserve.planner.report import Report
    from coserve.planner.serving_plan import Refusal


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a config.json or its folder, or 70B.")],
    rps: Annotated[float | None, typer.Option(help="Requests a second to serve.")] = None,
    prompt: Annotated[float, typer.Option(metavar="TOKENS", help="Of a prompt.")] = 1000,
    output: Annotated[float, typer.Option(metavar="TOKENS", help="Of an answer.")] = 300,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of requests: gives rate, lengths and peak.")
    ] = None,
    ttft: Annotated[str | None, typer.Option(metavar="500ms", help="Goal: time to first token, 99th of 100.")] = None,
    itl: Annotated[
        str | None, typer.Option(metavar="25ms", help="Goal: mean time between tokens, 99th of 100.")
    ] = None,
    peak: Annotated[float | None, typer.Option(help="Load to build for, over the average (default 1).")] = None,
    train_tokens: Annotated[
        str | None, typer.Option(metavar="5B", help="Tokens to train on; 50M/day with --rps: one cluster for both.")
    ] = None,
    method: Annotated[str, typer.Option(help="Of training: full, lora or qlora.")] = "lora",
    deadline: Annotated[str, typer.Option(metavar="24h", help="To be trained in.")] = "24h",
    chip: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these chips; `this` is this machine, measured.")
    ] = None,
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
    from coserve.planner import ask, report

    result = ask.plan(
        ask.Ask(
            model=model,
            rps=rps,
            prompt=prompt,
            output=output,
            trace=trace,
            ttft=ttft,
            itl=itl,
            peak=peak,
            train_tokens=train_tokens,
            method=method,  # type: ignore[arg-type]  # checked there
            deadline=deadline,
            chips=chip or (),
            weights=weights,
            cache=cache,
            engine=engine,
            prefix_hit=prefix_hit,
            drafted=drafted,
            acceptance=acceptance,
            disaggregated=disaggregated,
            price_in=price_in,
            price_out=price_out,
            chip_price=_chip_prices(chip_price or []),
        )
    )
    if html or png:
        _write(result, html, png)
    if as_json:
        typer.echo(json.dumps(report.as_json(result), indent=2))
    elif not (html or png):
        _show(result)


def _write(result: Report, html: Path | None, png: Path | None) -> None:
    from coserve.planner import plots

    if html:
        plots.write_html(result, html)
    if png:
        plots.write_png(result, png)
    typer.echo(f"Wrote {' and '.join(str(path) for path in (html, png) if path)}", err=True)


def _show(result: Report) -> None:
    from coserve.planner import report

    for line in report.headline(result):
        typer.echo(line)
    if result.answer:
        typer.echo("\nServing")
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
    typer.echo(f"\n{report.PRICES}")


def _show_refusals(what: str, refusals: Sequence[Refusal]) -> None:
    if refusals:
        typer.echo(f"Cannot {what}:")
    for refusal in refusals:
        typer.echo(f"  {refusal.chip.name}: {refusal.why}")


def _chip_prices(given: list[str]) -> dict[str, float]:
    prices = {}
    for text in given:
        name, equals, price = text.rpartition("=")
        try:
            prices[name] = float(price)
        except ValueError:
            equals = ""
        if not equals:
            raise InvalidRequest(f"chip-price: {text!r} is not NAME=USD", param="chip-price")
    return prices
