"""An answer as pictures: one page that stands alone, or a PNG. Needs matplotlib (`pip install coserve[plots]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coserve.errors import InvalidRequest
from coserve.planner import report as rows
from coserve.planner.page import COLOURS, INK, MUTED, Drawing, figures, legend_above, page, picture, table, text, write
from coserve.planner.report import Report
from coserve.planner.serving import closed_loop
from coserve.planner.serving_plan import Answer, Plan

SHOWN = 8
"""Chips in a plot: more cannot be told apart."""


def write_png(report: Report, path: Path) -> None:
    """Every plot of the report, in one picture. Raises `InvalidRequest` without matplotlib."""
    write(path, picture(_drawings(report)))


def write_html(report: Report, path: Path) -> None:
    """A page with the tables and the plots in it, which needs nothing else. Raises `InvalidRequest` likewise."""
    write(path, _page(report, figures(_drawings(report))).encode())


def _drawings(report: Report) -> list[Drawing]:
    found: list[Drawing] = []
    if report.answer and report.answer.plans:
        answer = report.answer
        shown = answer.plans[:SHOWN]
        found.append(("What binds each chip: where the time of a decode step goes", lambda a: _parts(a, shown)))
        found.append(("The roofline, with prompts (squares) and decoding (circles)", lambda a: _roofline(a, shown)))
        if any(plan.cost.per_hour is not None for plan in shown):
            found.append(("Cost against speed, each chip from full to empty", lambda a: _pareto(a, shown)))
            found.append(("Cost against load", lambda a: _load(a, answer, shown)))
    if report.trained and report.trained[0]:
        plans = report.trained[0][:SHOWN]
        found.append(("Training: cost and time", lambda a: _training(a, plans)))
    if report.shared:
        found.append(
            ("Chips for two clusters, and for one that does both", lambda a: _clusters(a, report.shared[:SHOWN]))
        )
    if not found:
        raise InvalidRequest("no chip can do it: there is nothing to plot")
    return found


def _parts(axis: Any, plans: Sequence[Plan]) -> None:
    names = [plan.chip.name for plan in plans][::-1]
    left = [0.0] * len(plans)
    parts = (
        ("memory bandwidth, arithmetic behind it", lambda s: max(s.memory, s.arithmetic), COLOURS[0]),
        ("interconnect", lambda s: s.links, COLOURS[1]),
        ("latency: messages, layers, the step itself", lambda s: s.latency, COLOURS[4]),
    )
    for label, part, colour in parts:
        widths = [1e3 * part(plan.serving.step) for plan in plans][::-1]
        axis.barh(names, widths, left=left, color=colour, label=label, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_xlabel("ms of a decode step")
    legend_above(axis)


def _roofline(axis: Any, plans: Sequence[Plan]) -> None:
    """FLOP/s reached against FLOPs a byte, per chip; lines are the chips' stated peaks."""
    for plan, colour in zip(plans, COLOURS, strict=False):
        replica, requests = plan.replica, plan.question.requests
        chip = plan.chip
        peak, bandwidth = chip.flops[replica.roofline.chip.format], chip.bandwidth
        xs = [2**i for i in range(-2, 15)]
        axis.plot(xs, [min(peak, x * bandwidth) for x in xs], color=colour, linewidth=1, alpha=0.6)
        for marker, work, seconds in (
            ("s", replica.prompt_pass(requests.computed), plan.serving.prompt.total),
            ("o", replica.decode_pass(plan.serving.running, requests.context), plan.serving.step.total),
        ):
            flops = work.matrix + work.attention
            axis.plot(
                flops / (work.weights + work.cache), flops / seconds, marker, color=colour,
                label=f"{chip.name} ({replica.weights})" if marker == "o" else None,
            )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOPs for a byte read")
    axis.set_ylabel("FLOP/s of a chip")
    axis.legend(frameon=False, loc="lower right")


def _pareto(axis: Any, plans: Sequence[Plan]) -> None:
    for plan, colour in zip(plans, COLOURS, strict=False):
        price = _price(plan)
        if price is None:
            continue
        replica, requests = plan.replica, plan.question.requests
        points = []
        users, most = 1.0, replica.slots(requests.context)
        while users <= min(most, 1024):
            now = closed_loop(replica, requests, users)
            usd = price * plan.layout.chips / 3600 / (now.rate * requests.output) * 1e6
            points.append((now.interactivity, usd))
            users *= 1.4
        axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=plan.chip.name)
    plotted = [plan for plan in plans if _price(plan) is not None]
    for plan, colour in zip(plans, COLOURS, strict=False):
        if plan in plotted and plan.cost.per_hour is not None:
            usd = plan.cost.per_hour / 3600 / plan.output_tokens * 1e6
            axis.plot(plan.serving.interactivity, usd, "o", color=colour)
    axis.set_yscale("log")
    axis.set_xscale("log")
    axis.set_xlabel("tokens/s that a user sees (dots: the plan)")
    axis.set_ylabel("USD a million output tokens, all costs on them")
    axis.legend(frameon=False)


def _load(axis: Any, answer: Answer, plans: Sequence[Plan]) -> None:
    """USD an hour for 1/8 to 8 times the load; with prices given, the revenue that breaks even."""
    question = answer.question
    rates = [question.rate * 2 ** (i / 2) for i in range(-6, 7)]
    for plan, colour in zip(plans, COLOURS, strict=False):
        price = _price(plan)
        if price is None:
            continue
        each = plan.most / plan.replicas
        chips = [
            (-(-rate * question.peak // each) + plan.prompt_replicas * rate / question.rate) * plan.layout.chips
            for rate in rates
        ]
        axis.plot(rates, [price * count for count in chips], color=colour, label=plan.chip.name, linewidth=1.2)
    if question.prices:
        request = question.prices.of_request(question.requests.prompt, question.requests.output)
        axis.plot(rates, [rate * 3600 * request for rate in rates], "--", color=INK, label="revenue: break-even")
    axis.axvline(question.rate, color=MUTED, linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("requests a second")
    axis.set_ylabel("USD an hour")
    axis.legend(frameon=False)


def _price(plan: Plan) -> float | None:
    return None if plan.cost.per_hour is None else plan.cost.per_hour / plan.chips


def _training(axis: Any, plans: Sequence[Any]) -> None:
    names = [f"{plan.chips:,} x {plan.chip.name}" for plan in plans][::-1]
    axis.barh(names, [plan.cost or 0.0 for plan in plans][::-1], color=COLOURS[2], height=0.6)
    axis.set_xlabel("USD")


def _clusters(axis: Any, shared: Sequence[Any]) -> None:
    names = [s.chip.name for s in shared][::-1]
    places = range(len(names))
    axis.barh(
        [p + 0.2 for p in places], [s.serving.chips for s in shared][::-1], 0.36, color=COLOURS[0], label="serving"
    )
    axis.barh(
        [p + 0.2 for p in places], [s.training.chips for s in shared][::-1], 0.36,
        left=[s.serving.chips for s in shared][::-1], color=COLOURS[2], label="training",
    )  # fmt: skip
    axis.barh(
        [p - 0.2 for p in places], [s.together or 0 for s in shared][::-1], 0.36, color=COLOURS[3], label="one for both"
    )
    axis.set_yticks(list(places), names)
    axis.set_xlabel("chips")
    legend_above(axis)


def _page(report: Report, pictures: Sequence[str]) -> str:
    lines = rows.headline(report)
    parts = [f"<h1>{text(report.shape.name)}: which chips, how many, at what cost</h1>"]
    parts += [f"<p>{text(line)}</p>" for line in lines]
    if report.answer:
        cells = [rows.serving_cells(plan) for plan in report.answer.plans]
        parts += ["<h2>Serving</h2>", table(rows.SERVING_COLUMNS, cells), _list(report.answer.refusals)]
    parts += ["<h2>Pictures</h2>", *pictures]
    if report.shared:
        cells = [rows.shared_cells(shared) for shared in report.shared]
        parts += ["<h2>One cluster for both, beside two</h2>", table(rows.SHARED_COLUMNS, cells)]
    if report.trained:
        cells = [rows.training_cells(plan) for plan in report.trained[0]]
        parts += ["<h2>Training</h2>", table(rows.TRAINING_COLUMNS, cells), _list(report.trained[1])]
    parts.append(
        "<footer>By coserve plan, from the roofline, the chips' stated figures and constants fitted on published "
        f"measurements. How right it is: docs/planner.md. Energy is at the chips' stated power. {rows.PRICES}.</footer>"
    )
    return page(f"{report.shape.name}: plan", parts)


def _list(refusals: Sequence[rows.Refusal]) -> str:
    items = "".join(f"<li>{text(r.chip.name)}: {text(r.why)}</li>" for r in refusals)
    return f"<p>These cannot:</p><ul>{items}</ul>" if items else ""
