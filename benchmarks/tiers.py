"""What an enterprise tier feels of a free tier that floods, and of a training job besides.

Two settings in turn: `alone` (enterprise at a steady share of the saturating rate, nothing else) and `flooded` (the
same requests, while free requests arrive at ten times what the engine could do, and a job trains). Both tiers have the
priorities, goals and waiting times of coserve's own `tiers.yaml`, and go straight to the engine: this measures the
schedule; `benchmarks/gateway.py` measures the door. Latencies are the client's, from when a request was due.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.client import Timeline, Window, closed_loop_rate, open_loop, serving_figures
from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import SMOLLM2_135M, BenchmarkModel, find_models
from benchmarks.options import benchmark_parser, seconds
from benchmarks.report import Row, medians, paired_ratio, print_table, progress, write_json
from benchmarks.training_load import TrainingInEngine, TrainingShape
from benchmarks.workload import Arrival, endless_requests, poisson_arrivals
from coserve.engine import Engine, EngineConfig, Request
from coserve.errors import Unavailable
from coserve.service.tiers import Tier, read_tiers

KEYS = ("model", "tier", "setting")
FLOOD = 10.0
"""Times the saturating rate at which free requests arrive."""
_TIERS = read_tiers(None).tiers


@dataclass(frozen=True)
class Plan:
    load: float  # of the enterprise tier, of the saturating rate
    rounds: int
    warm_up: float  # seconds
    seconds: float
    training: TrainingShape
    seed: int
    concurrency: int  # requests in flight while the saturating rate is looked for


def at_tier(requests: Iterator[Request], name: str) -> Iterator[Request]:
    """The requests with what the service tells the engine of a tier."""
    tier: Tier = _TIERS[name]
    for request in requests:
        yield replace(
            request,
            priority=tier.priority,
            share=name,
            ttft_goal=tier.ttft,
            itl_goal=tier.itl,
            queue_seconds=tier.queue,
        )


class Flood:
    """Requests that arrive whatever becomes of the earlier ones, until it is stopped; a full queue refuses some."""

    def __init__(self, engine: Engine, arrivals: Iterator[Arrival]):
        self.timelines: list[Timeline] = []
        self.refused = 0
        self._engine, self._arrivals = engine, arrivals
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing of it is in the engine any more."""
        self._over.set()
        self._thread.join()
        for timeline in self.timelines:
            self._engine.cancel(timeline.request.id)
        while not all(timeline.finished for timeline in self.timelines):
            time.sleep(0.01)

    def _run(self) -> None:
        origin = time.perf_counter()
        for arrival in self._arrivals:
            if self._over.wait(max(0.0, origin + arrival.at - time.perf_counter())):
                return
            timeline = Timeline(arrival.request, origin + arrival.at)
            with suppress(Unavailable):
                self._engine.submit(arrival.request, timeline.note)
                self.timelines.append(timeline)
                continue
            self.refused += 1


class Bench:
    def __init__(self, model: BenchmarkModel, plan: Plan, stack: ExitStack):
        self.model, self.plan = model, plan
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = Engine.from_pretrained(model.path, home=home, name=model.name, config=EngineConfig())
        self.engine = stack.enter_context(engine)
        self.training = TrainingInEngine(self.engine, plan.training, plan.seed)
        self.training.warm_up()
        self.saturating = closed_loop_rate(self.engine, self._requests(plan.seed), plan.concurrency, plan.seconds)

    def run(self, setting: str, number: int) -> list[Row]:
        """One row for each tier that was served."""
        plan, flooded = self.plan, setting == "flooded"
        seed = 1000 * plan.seed + number
        steady = poisson_arrivals(at_tier(self._requests(seed), "enterprise"), plan.load * self.saturating, seed)
        free = poisson_arrivals(at_tier(self._requests(seed + 500), "free"), FLOOD * self.saturating, seed + 500)
        flood = Flood(self.engine, free)
        if flooded:
            self.training.start()
            flood.start()
        window = Window.after(plan.warm_up, plan.seconds)
        served = {"enterprise": open_loop(self.engine, steady, window, lambda: True, max(5.0, plan.seconds))}
        if flooded:
            flood.stop()
            self.training.stop()
            served["free"] = flood.timelines
        trained = self.training.marks.rate(window) if flooded else 0.0
        return [
            {"model": self.model.name, "round": number, "tier": tier, "setting": setting}
            | serving_figures(timelines, window)
            | {"training_tokens_per_s": trained}
            for tier, timelines in served.items()
        ]

    def _requests(self, seed: int) -> Iterator[Request]:
        engine = self.engine
        return endless_requests(engine.name, engine.model_config.vocab_size, engine.max_context, seed)


def measure(model: BenchmarkModel, plan: Plan) -> tuple[list[Row], Row]:
    """Both settings in every round: (rows, what there is to say about the model's runs)."""
    with ExitStack() as stack:
        progress(f"{model.name}: loading")
        bench = Bench(model, plan, stack)
        progress(f"{model.name}: saturated at {bench.saturating:.3g} requests/s")
        rows = []
        for number in range(1, plan.rounds + 1):
            order = ("alone", "flooded") if number % 2 else ("flooded", "alone")
            for setting in order:
                rows += bench.run(setting, number)
                progress(f"{model.name}, round {number}/{plan.rounds}: {setting} done")
    return rows, {"model": model.name, "saturating_requests_per_s": bench.saturating}


def summary(rows: Sequence[Row]) -> list[Row]:
    """The medians for a reader, with their ratios to enterprise alone in the same round."""
    table = []
    for row in medians(rows, KEYS):
        keys = {key: row[key] for key in KEYS}
        alone = {**keys, "tier": "enterprise", "setting": "alone"}
        shown = dict(keys)
        for field in ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99"):
            shown[field.replace("_", " ")] = row[field]
            if keys["tier"] == "enterprise" and keys != alone:
                shown[field.replace("_", " ")] = f"{row[field]:.1f} (x{paired_ratio(rows, field, keys, alone):.2f})"
        shown["output tok/s"] = row["output_tokens_per_s"]
        shown["training tok/s"] = row["training_tokens_per_s"]
        table.append(shown)
    return table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser("tiers", __doc__.split("\n")[0], ("builtin", SMOLLM2_135M))
    parser.add_argument("--load", type=seconds, default=0.3, help="enterprise's share of the saturating rate")
    parser.add_argument("--seconds", type=seconds, metavar="S", help="of each run that count")
    parser.add_argument("--warm-up", type=seconds, metavar="S", help="before them")
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace) -> Plan:
    quick = options.quick
    return Plan(
        load=options.load,
        rounds=options.rounds or (1 if quick else 3),
        warm_up=options.warm_up or (1.5 if quick else 6.0),
        seconds=options.seconds or (4.0 if quick else 30.0),
        training=TrainingShape(2, 128 if quick else 512),
        seed=options.seed,
        concurrency=16 if quick else 32,
    )


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
    print(f"\nx: times enterprise alone of the same round. Medians of {plan.rounds} rounds of {plan.seconds:g} s.")
    if options.json:
        write_json(options.json, machine, medians(every_round, KEYS), models=about, every_round=every_round)


if __name__ == "__main__":
    main()
