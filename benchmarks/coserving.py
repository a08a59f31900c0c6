"""What training costs those who are being served, and what it gets done meanwhile.

Four settings, in turn: `inference` alone, `training` alone, `both` on one engine, and `two_processes`
(engine in one, our trainer in the other, each with all threads). Requests arrive at random (Poisson) at a
share (`load`) of the rate that saturates inference alone, the same ones in all settings of a round.
Latencies are the client's, from when a request was due. `--protect 1.05,1.1,1.25,goals` draws the curve:
inference slowed down against training kept.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import NO_SERVING, Window, closed_loop_rate, open_loop, serving_figures
from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import SMOLLM2_135M, BenchmarkModel, find_models
from benchmarks.options import benchmark_parser, numbers, positive, seconds
from benchmarks.report import Row, medians, paired_ratio, print_table, progress, write_json
from benchmarks.training_load import TrainingInEngine, TrainingInProcess, TrainingLoad, TrainingShape
from benchmarks.workload import endless_requests, poisson_arrivals
from coserve.engine import Engine, EngineConfig
from coserve.engine.config import Protect

SETTINGS = ("inference", "training", "both", "two_processes")
KEYS = ("model", "setting", "protect", "load")
LATENCIES = ("itl_ms_p50", "itl_ms_p99", "ttft_ms_p50", "ttft_ms_p99")


@dataclass(frozen=True)
class Plan:
    """What is run: for how long, how often, and which settings at which loads."""

    settings: tuple[str, ...]
    protects: tuple[Protect, ...]
    loads: tuple[float, ...]
    rounds: int
    warm_up: float  # seconds
    seconds: float
    training: TrainingShape
    seed: int
    rate: float | None  # requests/s that saturate; None: to be found
    concurrency: int  # requests in flight while it is looked for

    @property
    def patience(self) -> float:
        return max(5.0, self.seconds)


@dataclass(frozen=True)
class Cell:
    """One figure set: a setting under a load. `protect` only where training is protected against."""

    setting: str
    load: float = 0.0
    protect: Protect | None = None


class Bench:
    """One model's engines (one for each `protect`), and the trainer in its own process."""

    def __init__(self, model: BenchmarkModel, plan: Plan, stack: ExitStack):
        self.model, self.plan = model, plan
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._engines: dict[Protect, Engine] = {}
        for protect in plan.protects:
            config = EngineConfig(protect=protect, max_waiting=1 << 20)
            engine = Engine.from_pretrained(model.path, home=home, name=model.name, config=config)
            self._engines[protect] = stack.enter_context(engine)
        self._apart: TrainingInProcess | None = None
        if {"training", "two_processes"} & {*plan.settings}:
            apart = TrainingInProcess(model.path, plan.training, plan.seed)
            self._apart = stack.enter_context(closing(apart))
        self._inside: dict[Protect, TrainingInEngine] = {}
        if "both" in plan.settings:
            for protect, engine in self._engines.items():
                self._inside[protect] = TrainingInEngine(engine, plan.training, plan.seed)
                self._inside[protect].warm_up()

    def saturating_rate(self) -> float:
        """Requests/s of inference alone when there are always more to serve."""
        engine = self._first_engine
        requests = endless_requests(engine.name, engine.model_config.vocab_size, engine.max_context, self.plan.seed)
        return closed_loop_rate(engine, requests, self.plan.concurrency, self.plan.seconds)

    def run(self, cell: Cell, saturating: float, number: int) -> Row:
        """Measure a cell in round `number`, which decides the requests."""
        row: Row = {"model": self.model.name, "round": number}
        row |= {"setting": cell.setting, "protect": cell.protect, "load": cell.load}
        engine = self._engines[cell.protect] if cell.protect is not None else self._first_engine
        training = self._training(cell)
        if training is not None:
            training.start()
        window = Window.after(self.plan.warm_up, self.plan.seconds)
        if cell.load:
            seed = 1000 * self.plan.seed + number
            requests = endless_requests(engine.name, engine.model_config.vocab_size, engine.max_context, seed)
            arrivals = poisson_arrivals(requests, cell.load * saturating, seed)
            timelines = open_loop(
                engine,
                arrivals,
                window,
                lambda: training is None or training.marks.reached(window.end),
                self.plan.patience,
            )
            row |= serving_figures(timelines, window)
        else:
            row |= NO_SERVING
            _wait_for_mark(training, window, self.plan.patience)
        if training is not None:
            training.stop()
        row["training_tokens_per_s"] = training.marks.rate(window) if training is not None else 0.0
        return row

    @property
    def _first_engine(self) -> Engine:
        return next(iter(self._engines.values()))

    def _training(self, cell: Cell) -> TrainingLoad | None:
        if cell.protect is not None:
            return self._inside[cell.protect]
        return self._apart if cell.setting in ("training", "two_processes") else None


def cells(plan: Plan, number: int) -> Iterator[Cell]:
    """A round's cells. Each round starts with another setting, so that none is always first."""
    if "training" in plan.settings:
        yield Cell("training")
    for load in plan.loads:
        row = [Cell("inference", load)] if "inference" in plan.settings else []
        row += [Cell("both", load, protect) for protect in plan.protects if "both" in plan.settings]
        row += [Cell("two_processes", load)] if "two_processes" in plan.settings else []
        turn = (number - 1) % max(1, len(row))
        yield from row[turn:] + row[:turn]


def measure(model: BenchmarkModel, plan: Plan) -> tuple[list[Row], Row]:
    """Every cell in every round: (rows, what there is to say about the model's runs)."""
    with ExitStack() as stack:
        progress(f"{model.name}: loading")
        bench = Bench(model, plan, stack)
        saturating = plan.rate or bench.saturating_rate()
        progress(f"{model.name}: inference alone is saturated at {saturating:.3g} requests/s")
        rows = []
        for number in range(1, plan.rounds + 1):
            for cell in cells(plan, number):
                rows.append(bench.run(cell, saturating, number))
                progress(f"{model.name}, round {number}/{plan.rounds}: {_one_line(rows[-1])}")
    return rows, {"model": model.name, "saturating_requests_per_s": saturating}


def summary(rows: Sequence[Row]) -> list[Row]:
    """The medians for a reader, with their ratios to inference or training alone in the same round."""
    table = []
    for row in medians(rows, KEYS):
        keys = {key: row[key] for key in KEYS}
        shown = dict(keys)
        for field in LATENCIES:
            alone = {**keys, "setting": "inference", "protect": None}
            ratio = paired_ratio(rows, field, keys, alone) if keys != alone else None
            shown[field.replace("_ms", " ms").replace("_", " ")] = _with(row[field], ratio, "x{:.2f}")
        shown["output tok/s"] = row["output_tokens_per_s"]
        alone = {"model": row["model"], "setting": "training"}
        kept = paired_ratio(rows, "training_tokens_per_s", keys, alone) if row["load"] else None
        shown["training tok/s"] = _with(row["training_tokens_per_s"], kept, "{:.0%}")
        table.append(shown)
    return table


def _with(value: float | None, ratio: float | None, form: str) -> str:
    if value is None:
        return "-"
    shown = f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return shown if ratio is None else f"{shown} ({form.format(ratio)})"


def _one_line(row: Row) -> str:
    at = f" at {row['load']:.0%}" if row["load"] else ""
    under = f", protect {row['protect']}" if row["protect"] is not None else ""
    latencies = "".join(f", {field} {row[field]:.1f}" for field in LATENCIES if row[field] is not None)
    speeds = f"{row['output_tokens_per_s']:.0f} output and {row['training_tokens_per_s']:.0f} training tokens/s"
    return f"{row['setting']}{at}{under}: {speeds}{latencies}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser("coserving", __doc__.split("\n")[0], ("builtin", SMOLLM2_135M))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="SETTING", help=" ".join(SETTINGS))
    parser.add_argument(
        "--protect", type=_protects, default=(1.1,), metavar="P,...", help="factors, or goals; default 1.1"
    )
    parser.add_argument("--loads", type=numbers, metavar="L,...", help="shares of the saturating request rate")
    parser.add_argument("--rate", type=seconds, metavar="R", help="the saturating requests/s, if it is known")
    parser.add_argument("--seconds", type=seconds, metavar="S", help="of each run that count")
    parser.add_argument("--warm-up", type=seconds, metavar="S", help="before them")
    parser.add_argument("--sequences", type=positive, default=2, help="of an optimizer step; default 2")
    parser.add_argument("--tokens", type=positive, help="of a training sequence")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace) -> Plan:
    quick = options.quick
    loads = (0.5,) if quick or len(options.protect) > 1 else (0.25, 0.5, 0.75)
    settings = SETTINGS if len(options.protect) == 1 else ("inference", "training", "both")
    return Plan(
        settings=tuple(options.settings or settings),
        protects=options.protect,
        loads=options.loads or loads,
        rounds=options.rounds or (1 if quick else 3),
        warm_up=options.warm_up or (1.5 if quick else 6.0),
        seconds=options.seconds or (4.0 if quick else 30.0),
        training=TrainingShape(options.sequences, options.tokens or (128 if quick else 512)),
        seed=options.seed,
        rate=options.rate,
        concurrency=16 if quick else 32,
    )


def _protects(text: str) -> tuple[Protect, ...]:
    return tuple("goals" if part == "goals" else float(part) for part in text.split(","))


def _wait_for_mark(training: TrainingLoad | None, window: Window, patience: float) -> None:
    """Until the window has ended, and a step of the training after it."""
    while (now := time.perf_counter()) < window.end + patience and not (
        now >= window.end and (training is None or training.marks.reached(window.end))
    ):
        time.sleep(0.02)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    plan, machine = plan_of(options), describe_machine()
    progress(machine_line(machine))
    every_round: list[Row] = []
    about: list[Row] = []
    for model in find_models(options.model):
        rows, facts = measure(model, plan)
        every_round += rows
        about.append(facts)
    if not every_round:
        raise SystemExit("there was no model to measure")
    print(f"\n{machine_line(machine)}\n")
    print_table(about)
    print()
    print_table(summary(every_round))
    print(
        "\nx: times inference alone of the same round; %: of training alone. Medians of",
        f"{plan.rounds} rounds of {plan.seconds:g} s.",
    )
    if options.json:
        write_json(options.json, machine, medians(every_round, KEYS), models=about, every_round=every_round)


if __name__ == "__main__":
    main()
