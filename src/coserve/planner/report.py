"""An answer as rows: for a terminal, for a program."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from coserve.planner.serving_plan import Answer, Plan, Refusal
from coserve.planner.shape import ModelShape
from coserve.planner.training_plan import Shared, TrainingPlan

Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What was asked for, answered: serving, training, or both and the two on one cluster."""

    shape: ModelShape
    answer: Answer | None = None
    trained: tuple[tuple[TrainingPlan, ...], tuple[Refusal, ...]] | None = None
    shared: tuple[Shared, ...] = ()


def serving_row(plan: Plan) -> Row:
    """Flat and JSON-able: seconds, bytes, USD, shares."""
    cost = plan.cost
    return {
        "chip": plan.chip.name,
        "chips": plan.chips,
        "layout": str(plan.layout),
        "replicas": plan.replicas,
        "prompt_replicas": plan.prompt_replicas,
        "weights": plan.replica.weights,
        "cache": plan.replica.cache,
        "batch": plan.serving.running,
        "memory_per_chip": plan.memory,
        "tokens_per_s_per_user": plan.serving.interactivity,
        "output_tokens_per_s": plan.output_tokens,
        "most_requests_per_s": plan.most,
        "ttft_s": plan.serving.ttft,
        "ttft_p99_s": plan.tail.ttft,
        "itl_p50_s": plan.serving.step.total,
        "tpot_s": plan.serving.tpot,
        "tpot_p99_s": plan.tail.tpot,
        "itl_p99_s": plan.tail.itl,
        "mbu": plan.mbu,
        "mfu": plan.mfu,
        "bound": plan.bound,
        "usd_per_hour": cost.per_hour,
        "price_source": plan.price_source,
        "usd_per_million_input": cost.per_million_input,
        "usd_per_million_output": cost.per_million_output,
        "kwh_per_million_output": cost.kwh_per_million_output,
        "break_even_requests_per_s": cost.break_even_rate,
        "margin": cost.margin,
    }


def training_row(plan: TrainingPlan) -> Row:
    return {
        "chip": plan.chip.name,
        "chips": plan.chips,
        "layout": str(plan.layout),
        "method": plan.run.method,
        "recompute": plan.run.recompute,
        "tokens_per_s": plan.tokens_per_second,
        "tokens_per_s_per_chip": plan.speed.tokens,
        "mfu": plan.speed.mfu,
        "days": plan.seconds / 86400,
        "usd": plan.cost,
        "memory_per_chip": plan.memory,
    }


def shared_row(shared: Shared) -> Row:
    return {
        "chip": shared.chip.name,
        "serving_chips": shared.serving.chips,
        "training_chips": shared.training.chips,
        "two_clusters": shared.apart,
        "one_cluster": shared.together,
        "arithmetic_used_by_serving": shared.arithmetic_used,
        "usd_saved_per_hour": shared.saved_per_hour,
        "why_not": shared.why or None,
    }


def as_json(report: Report) -> Row:
    """The whole report; infinite goals are null."""
    result: Row = {"model": report.shape.name, "parameters": report.shape.parameters()}
    if report.answer:
        question = report.answer.question
        result["load"] = {
            "requests_per_s": question.rate,
            "peak": question.peak,
            **asdict(question.requests),
            "ttft_goal_s": _finite(question.limits.ttft),
            "itl_goal_s": _finite(question.limits.tpot),
        }
        result["serving"] = [serving_row(plan) for plan in report.answer.plans]
        result["cannot_serve"] = [{"chip": r.chip.name, "why": r.why} for r in report.answer.refusals]
    if report.trained:
        plans, refusals = report.trained
        result["training"] = [training_row(plan) for plan in plans]
        result["cannot_train"] = [{"chip": r.chip.name, "why": r.why} for r in refusals]
    if report.shared:
        result["one_cluster_for_both"] = [shared_row(shared) for shared in report.shared]
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- for people -------------------------------------------------------------------------------

SERVING_COLUMNS = (
    "chip", "chips", "layout", "weights", "batch", "tok/s/user", "TTFT p99", "ITL p50/p99", "MBU", "MFU",
    "bound by", "$/h", "$/M in", "$/M out", "kWh/M",
)  # fmt: skip
BOUGHT = "*"
PRICES = "* bought and used up over years, without running costs; other prices are rent (coserve chips NAME says whose)"
TRAINING_COLUMNS = ("chip", "chips", "layout", "tok/s/chip", "MFU", "days", "memory", "$")
SHARED_COLUMNS = ("chip", "to serve", "to train", "two clusters", "one cluster", "saved $/h")


def serving_cells(plan: Plan) -> tuple[str, ...]:
    cost = plan.cost
    beside = f"+{plan.prompt_replicas}" if plan.prompt_replicas else ""
    return (
        plan.chip.name,
        f"{plan.chips:,}",
        f"{plan.replicas}{beside} x {plan.layout}",
        plan.replica.weights,
        f"{plan.serving.running:.0f}",
        f"{plan.serving.interactivity:,.0f}",
        milliseconds(plan.tail.ttft),
        f"{1e3 * plan.serving.step.total:.3g}/{1e3 * plan.tail.itl:.3g} ms",
        f"{plan.mbu:.0%}",
        f"{plan.mfu:.0%}",
        plan.bound,
        dollars(cost.per_hour) + (BOUGHT if plan.chip.bought else ""),
        dollars(cost.per_million_input),
        dollars(cost.per_million_output),
        f"{cost.kwh_per_million_output:.2g}",
    )


def training_cells(plan: TrainingPlan) -> tuple[str, ...]:
    return (
        plan.chip.name,
        f"{plan.chips:,}",
        f"{plan.layout}{', recompute' if plan.run.recompute else ''}",
        f"{plan.speed.tokens:,.0f}",
        f"{plan.speed.mfu:.0%}",
        f"{plan.seconds / 86400:.2f}",
        f"{sum(plan.memory.values()) / 1e9:.0f} GB",
        dollars(plan.cost) + (BOUGHT if plan.cost is not None and plan.chip.bought else ""),
    )


def shared_cells(shared: Shared) -> tuple[str, ...]:
    return (
        shared.chip.name,
        f"{shared.serving.chips:,}",
        f"{shared.training.chips:,}",
        f"{shared.apart:,}",
        shared.why or f"{shared.together:,}",
        dollars(shared.saved_per_hour),
    )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def _count(tokens: float) -> str:
    """5e9 -> 5B."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= scale:
            return f"{tokens / scale:.4g}{letter}"
    return f"{tokens:.4g}"


def dollars(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def headline(report: Report) -> list[str]:
    """The question in a line, and the answer in one."""
    lines = []
    if report.answer:
        q = report.answer.question
        goals = [f"TTFT within {milliseconds(q.limits.ttft)}"] if math.isfinite(q.limits.ttft) else []
        goals += [f"ITL within {milliseconds(q.limits.tpot)}"] if math.isfinite(q.limits.tpot) else []
        peak = f" (built for {q.peak:.3g} times as much)" if q.peak > 1 else ""
        lines.append(
            f"{report.shape.name}: {q.rate:.4g} requests/s{peak} of {q.requests.prompt:.0f} + {q.requests.output:.0f} "
            f"tokens{'; for 99 of 100: ' + ', '.join(goals) if goals else ''}"
        )
        if report.answer.plans:
            best = report.answer.plans[0]
            price = f" for ${dollars(best.cost.per_hour)} an hour" if best.cost.per_hour is not None else ""
            lines.append(f"Cheapest: {best.chips} x {best.chip.name}{price}, bound by {best.bound}.")
            if best.cost.margin is not None and best.cost.break_even_rate is not None:
                lines.append(
                    f"At the given prices: margin {best.cost.margin:.0%}; break-even at "
                    f"{best.cost.break_even_rate:.3g} requests/s."
                )
        else:
            lines.append("No chip can do it.")
    if report.trained:
        lines += _training_lines(report.shape, report.trained[0])
    return lines


def _training_lines(shape: ModelShape, plans: tuple[TrainingPlan, ...]) -> list[str]:
    if not plans:
        return ["No chip can be done in time."]
    best = plans[0]
    question = best.question
    cost = f" for ${dollars(best.cost)}" if best.cost is not None else ""
    return [
        f"{shape.name}: {question.run.method} training on {_count(question.tokens)} tokens in "
        f"{question.deadline / 3600:.4g} h",
        f"Cheapest: {best.chips} x {best.chip.name}{cost}, done in {best.seconds / 3600:.3g} h.",
    ]
