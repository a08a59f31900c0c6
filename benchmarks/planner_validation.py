"""The planner's predictions against what others measured: per row, chip, model and metric.

Constants are fitted on all rows, and again for each chip and model without any row of either: the errors of those
predictions ("left out") are what one may expect for chips and models that the planner never saw.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import describe_machine
from benchmarks.planner import dataflow, mlperf, operators, published, serving, training
from benchmarks.planner.case import Case, Row
from benchmarks.planner.fit import GROUPS, fit
from benchmarks.report import print_table, progress, write_json
from coserve.planner.constants import FITTED, Constants

DATA = Path(__file__).resolve().parent / "data" / "planner"


@dataclass(frozen=True)
class Table:
    """A CSV layout, known by columns that only it has, and the groups of constants that its predictions use."""

    name: str
    columns: frozenset[str]
    case: Callable[[Row], Case]
    groups: tuple[str, ...]
    every: int  # with --quick, one row of so many


TABLES = (
    Table("measured_serving", frozenset({"attention_dp_size", "tpot_ms"}), serving.case, ("serving",), 8),
    Table("operator_times", frozenset({"attn_pre_proj_ms"}), operators.case, ("operators",), 4),
    Table("mlperf_inference_v5_1", frozenset({"submitter"}), mlperf.case, ("serving", "cpu"), 4),
    Table("inference_published", frozenset({"batch_or_concurrency"}), published.case, ("serving", "ring"), 2),
    Table("dataflow_published", frozenset({"input_tokens"}), dataflow.case, ("serving",), 1),
    Table("training_published", frozenset({"mfu_pct"}), training.case, ("training",), 2),
)


LEFT_OUT = ("nothing", "chip", "model", "both")


@dataclass(frozen=True)
class Outcome:
    case: Case
    metric: str
    measured: float
    predicted: Mapping[str, float]  # by what was left out of the fit: LEFT_OUT; empty where nothing can be predicted
    fitted_on: str  # which of chip and model took part in the fit of all rows

    def error(self, left_out: str) -> float | None:
        predicted = self.predicted.get(left_out)
        return None if predicted is None else abs(predicted / self.measured - 1)


def read(path: Path, quick: bool) -> tuple[Table, list[Case]]:
    """The table's layout and its cases. Raises `SystemExit` naming the layouts for a file in none of them."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        table = next((t for t in TABLES if t.columns <= set(reader.fieldnames or ())), None)
        if table is None:
            raise SystemExit(f"{path}: its columns are those of none of {', '.join(t.name for t in TABLES)}")
        rows = list(reader)
    return table, [table.case(row) for row in (rows[:: table.every] if quick else rows)]


Key = tuple[str, str, str]
"""A group of constants, and the chip and the model that its fit must not see ("" = none)."""


class Fits:
    """Constants fitted on the known cases, by what is left out of them."""

    def __init__(self, known: Sequence[Case]):
        self.known = known
        self.found: dict[Key, Constants] = {}
        used = {name: [case for case in known if group.uses(case)] for name, group in GROUPS.items()}
        self.chips = {name: {case.chip for case in cases} for name, cases in used.items()}
        self.models = {name: {case.model for case in cases} for name, cases in used.items()}

    def key(self, group: str, case: Case, left_out: str) -> Key:
        """Only a chip or a model that the group is fitted on can be left out, so that equal fits are made once."""
        chip = left_out in ("chip", "both") and case.chip in self.chips[group]
        model = left_out in ("model", "both") and case.model in self.models[group]
        return group, case.chip if chip else "", case.model if model else ""

    def make(self, keys: Iterable[Key]) -> None:
        """Fit for each key, two at a time."""
        global _fits
        _fits = self
        todo = sorted(set(keys) - set(self.found))
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
            for key, constants in zip(todo, pool.map(_fit, todo), strict=True):
                progress(f"fitted {key[0]} without {' and '.join(filter(None, key[1:])) or 'leaving anything out'}")
                self.found[key] = constants

    def keys(self, table: Table, cases: Iterable[Case], left_out: Sequence[str] = LEFT_OUT) -> set[Key]:
        """Of all fits that the predictions of `cases` need."""
        return {self.key(group, case, name) for case in cases for group in table.groups for name in left_out}

    def constants(self, keys: Iterable[Key]) -> Constants:
        """Each group's own constants out of its fit."""
        found = FITTED
        for key in keys:
            found = replace(found, **{name: getattr(self.found[key], name) for name in _names(key[0])})
        return found


_fits: Fits  # for the worker processes: cases hold functions, which cannot be sent


def _fit(key: Key) -> Constants:
    group, chip, model = key
    rows = [case for case in _fits.known if case.chip != chip and case.model != model]
    return fit(GROUPS[group], rows, FITTED)


def _names(group: str) -> tuple[str, ...]:
    return (*GROUPS[group].names, *(("first_token",) if GROUPS[group].engines else ()))


def outcomes(table: Table, cases: Sequence[Case], fits: Fits, left_out: Sequence[str] = LEFT_OUT) -> list[Outcome]:
    """Every metric of every case, one after the other; the last of `left_out` leaves out the most."""
    found = []
    for case in cases:
        keys = {name: [fits.key(group, case, name) for group in table.groups] for name in left_out}
        seen = [name for i, name in ((1, "chip"), (2, "model")) if any(key[i] for key in keys[left_out[-1]])]
        predicted = {name: case.predict(fits.constants(keys[name])) for name in left_out} if case.predict else {}
        for metric, measured in case.measured.items():
            values = {name: values[metric] for name, values in predicted.items()}
            found.append(Outcome(case, metric, measured, values, " and ".join(seen) or "neither"))
    return found


def summary(results: Sequence[Outcome], by: Callable[[Outcome], tuple[str, ...]], names: Sequence[str]) -> list[dict]:
    """Median errors in per cent, of each group of outcomes."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in results:
        groups.setdefault(by(outcome), []).append(outcome)
    return [
        dict(zip(names, key, strict=True))
        | {
            "figures": len(group),
            "unexplained": sum(not o.predicted for o in group),
            "fitted_%": _median(o.error("nothing") for o in group),
            "without_chip_%": _median(o.error("chip") for o in group),
            "without_model_%": _median(o.error("model") for o in group),
            "without_both_%": _median(o.error("both") for o in group),
            "predicted/measured": _middle([o.predicted["both"] / o.measured for o in group if o.predicted]),
        }
        for key, group in groups.items()
    ]


def _median(errors: Iterable[float | None]) -> float | None:
    """In per cent; a figure that cannot be explained counts as missed altogether."""
    known = [100.0 if e is None else 100 * e for e in errors]
    return _middle(known)


def _middle(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner_validation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: some of the rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row with its predictions to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG or SVG)")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="FILE", help="CSV files in the shipped layouts, instead of those"
    )
    parser.add_argument("--rows", action="store_true", help="print every figure, not only the medians")
    options = parser.parse_args()

    shipped = [read(DATA / f"{table.name}.csv", options.quick) for table in TABLES]
    asked = [read(path, False) for path in options.data] if options.data else shipped
    fits = Fits([case for _, cases in shipped for case in cases])
    fits.make([(group, "", "") for group in GROUPS])
    fits.make(key for table, cases in asked for key in fits.keys(table, cases))
    results = [outcome for table, cases in asked for outcome in outcomes(table, cases, fits)]

    if options.rows:
        print_table(
            [_row(o) for o in results], ["table", "chip", "model", "metric", "measured", "predicted", "without_both"]
        )
    print_table(summary(results, lambda o: (o.case.table, o.case.chip, o.case.model, o.metric), _BY_MODEL))
    print_table(summary(results, lambda o: (o.case.table, o.case.chip), ("table", "chip")))
    print_table(summary(results, lambda o: (o.case.table, o.metric), ("table", "metric")))
    print_table(summary(results, lambda o: (o.case.table,), ("table",)))
    _print_unexplained(results)
    constants = fits.constants([(group, "", "") for group in GROUPS])
    print_table([{"constant": name, "value": value} for name, value in _flat(constants).items()])
    if options.json:
        write_json(
            options.json, describe_machine(), [_row(o) | o.case.row for o in results], constants=_flat(constants)
        )
    if options.plot:
        _plot(results, options.plot)


_BY_MODEL = ("table", "chip", "model", "metric")


def _row(outcome: Outcome) -> dict:
    return {
        "table": outcome.case.table,
        "chip": outcome.case.chip,
        "model": outcome.case.model,
        "metric": outcome.metric,
        "measured": outcome.measured,
        "predicted": outcome.predicted.get("nothing"),
        **{f"without_{name}": outcome.predicted.get(name) for name in LEFT_OUT[1:]},
        "fitted_on": outcome.fitted_on,
        "why": outcome.case.why,
    }


def _print_unexplained(results: Sequence[Outcome]) -> None:
    """What cannot be predicted, or not within a half, and where known why: each reason once."""
    reasons: dict[tuple[str, str], int] = {}
    for o in results:
        error = o.error("both")
        if error is None or (error > 0.5 and o.case.why):
            key = (o.case.table, o.case.why)
            reasons[key] = reasons.get(key, 0) + 1
    if reasons:
        print_table([{"table": table, "figures": n, "why": why} for (table, why), n in reasons.items()])


def _flat(constants: Constants) -> dict[str, float]:
    """Every constant with three digits; `first_token` by engine."""
    values = asdict(constants)
    engines = values.pop("first_token")
    values |= {f"first_token[{engine}]": value for engine, value in engines.items()}
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def _plot(results: Sequence[Outcome], path: Path) -> None:
    """Predicted (left out) against measured, one small plot a table; the band is 20 %."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(o.case.table for o in results))
    figure, axes = plt.subplots(2, 3, figsize=(12, 7.6))
    for axis, name in zip(axes.flat, names, strict=False):
        shown = [o for o in results if o.case.table == name and o.predicted]
        for metric in list(dict.fromkeys(o.metric for o in shown)):
            points = [(o.measured, o.predicted["both"]) for o in shown if o.metric == metric]
            axis.plot(*zip(*points, strict=True), ".", markersize=3, label=metric.removesuffix("_ms"))
        ends = [min(o.measured for o in shown), max(o.measured for o in shown)] if shown else [1, 10]
        axis.plot(ends, ends, color="#1d2433", linewidth=0.8)
        axis.fill_between(
            ends, [0.8 * e for e in ends], [1.2 * e for e in ends], color="#d0d5dd", alpha=0.6, linewidth=0
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_xlabel("measured")
        axis.set_ylabel("predicted, chip and model left out")
        axis.legend(frameon=False, fontsize=6, loc="upper left")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
