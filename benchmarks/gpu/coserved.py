"""The table of serving and training at once: what is lost by those who are served, and by the training.

Requests of a real service's lengths arrive at random at half of the rate that saturates inference alone; the same ones
without training and with slices of it between the steps, in turn. Training alone has the whole chip: no engine between
its slices. The last column is another promise: `protect: goals`, training may use all the time up to the ITL goal.
"""

from __future__ import annotations

from benchmarks.client import Window, closed_loop_rate, open_loop, serving_figures
from benchmarks.gpu.bench import Bench, aim, free_memory
from benchmarks.gpu.training import shape_of, train_steps
from benchmarks.report import Row, median, paired_ratio, progress
from benchmarks.training_load import TrainingInEngine
from benchmarks.workload import endless_requests, poisson_arrivals
from coserve.engine import Engine
from coserve.engine.stats import EngineStats

_LOAD = 0.5
_PATIENCE = 30.0
ALONE, BOTH, GOALS = "alone", "both", "goals"
SETTINGS = (ALONE, BOTH)


def measure(bench: Bench) -> list[Row]:
    rounds, peak, trained = under_a_factor(bench)
    free_memory()  # of that engine: the next one is as large
    return summary([*rounds, under_goals(bench, peak)], trained)


def under_a_factor(bench: Bench) -> tuple[list[Row], float, float]:
    """The rounds; requests/s that saturate; training's tokens/s alone."""
    engine = bench.engine()
    training = TrainingInEngine(engine, shape_of(bench), bench.seed)
    training.warm_up()
    peak = saturating_rate(bench)
    free_memory()
    trained = train_steps(bench, training.machine, 2 if bench.quick else 4).tokens_per_s(shape_of(bench).step_tokens)
    progress(f"saturated at {peak:.3g} requests/s; training alone {trained:.0f} tokens/s")
    warm_up(bench, engine, peak, training)
    rounds = []
    for number in range(1, bench.rounds + 1):
        for setting in SETTINGS[:: 1 if number % 2 else -1]:
            row = serve(bench, engine, peak, number, None if setting == ALONE else training)
            rounds.append({"setting": setting, "round": number, **row})
            progress(f"{setting}, round {number}: {row}")
    return rounds, peak, trained


def under_goals(bench: Bench, peak: float) -> Row:
    """A round with an engine that promises no more than the ITL goal."""
    engine = bench.engine(protect="goals")
    training = TrainingInEngine(engine, shape_of(bench), bench.seed)
    warm_up(bench, engine, peak, training)
    row = serve(bench, engine, peak, 1, training)
    progress(f"{GOALS} ({engine.config.itl_goal:g} s): {row}")
    return {"setting": GOALS, "round": 1, **row}


def warm_up(bench: Bench, engine: Engine, peak: float, training: TrainingInEngine) -> None:
    """A round for nothing: whatever is met for the first time, batches and slices, takes longer."""
    serve(bench, engine, peak, 0, training)


def saturating_rate(bench: Bench) -> float:
    """Requests/s when there are always more to serve."""
    engine, size = bench.engine(), bench.size
    vocabulary = size.config["vocab_size"]
    requests = endless_requests("random", vocabulary, engine.max_context, bench.seed, size.trace_scale, 1.0)
    return closed_loop_rate(engine, requests, size.streams, bench.seconds / 2)


def serve(bench: Bench, engine: Engine, peak: float, number: int, training: TrainingInEngine | None) -> Row:
    """One round under load, the same requests in each setting."""
    size, seed = bench.size, 1000 * bench.seed + number
    vocabulary = size.config["vocab_size"]
    requests = endless_requests("random", vocabulary, engine.max_context, seed, size.trace_scale, 1.0)
    if training is not None:
        free_memory()  # of the trainer before: a new one asks what is free
        training.start()
    window = Window.after(bench.seconds / 4, bench.seconds)
    arrivals = poisson_arrivals(requests, _LOAD * peak, seed)
    settled = lambda: training is None or training.marks.reached(window.end)  # noqa: E731
    before = engine.stats()
    timelines = open_loop(engine, arrivals, window, settled, _PATIENCE)
    figures = serving_figures(timelines, window) | booked(before, engine.stats())
    figures["training_tokens_per_s"] = 0.0 if training is None else training.marks.rate(window)
    if training is not None:
        training.stop()
    return figures


def booked(before: EngineStats, after: EngineStats) -> Row:
    """How the engine says that its time was spent."""
    training = after.training_seconds - before.training_seconds
    inference = after.inference_seconds - before.inference_seconds
    return {"training_share": training / ((training + inference) or 1.0)}


def summary(rounds: list[Row], trained: float) -> list[Row]:
    """A row for each figure: alone, with training, the median ratio of the rounds; with training under goals."""

    def of(setting: str, field: str) -> float | None:
        return median(row[field] for row in rounds if row["setting"] == setting)

    def row(name: str, field: str, at_most: float | None = None) -> Row:
        ratio = paired_ratio(rounds, field, {"setting": BOTH}, {"setting": ALONE})
        wanted = {} if at_most is None else aim(ratio, at_most=at_most)
        values = {setting: of(setting, field) for setting in (ALONE, BOTH, GOALS)}
        return {"figure": name, **values, "ratio": ratio, **wanted}

    def of_training() -> Row:
        both = of(BOTH, "training_tokens_per_s")
        kept = None if both is None else both / trained
        speeds = {ALONE: trained, BOTH: both, GOALS: of(GOALS, "training_tokens_per_s"), "ratio": kept}
        return {"figure": "training tokens/s", **speeds, **aim(kept, at_least=0.70)}

    return [
        row("ITL ms, p50", "itl_ms_p50", 1.10),
        row("ITL ms, p99", "itl_ms_p99", 1.20),
        of_training(),
        row("share of the time", "training_share"),
        row("TTFT ms, p50", "ttft_ms_p50"),
        row("TTFT ms, p99", "ttft_ms_p99"),
        row("output tokens/s", "output_tokens_per_s"),
    ]
