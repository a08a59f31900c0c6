"""The table of the scheduler's predictions: how far they are from what steps took, under several loads."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.client import answers, closed_loop_rate
from benchmarks.gpu.bench import Bench, aim
from benchmarks.report import Row, progress
from benchmarks.workload import endless_requests
from coserve.engine import Engine

_PAUSE = 0.002  # seconds between two looks


class Watch:
    """Looks at the statistics of a running engine: predicted over measured seconds, of each step that was seen."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.ratios: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, over: threading.Event) -> None:
        seen = self.engine.stats().steps
        while not over.wait(_PAUSE):
            stats = self.engine.stats()
            if stats.steps != seen and stats.measured_step_seconds > 0:
                self.ratios.append(stats.predicted_step_seconds / stats.measured_step_seconds)
            seen = stats.steps


def measure(bench: Bench) -> list[Row]:
    engine, s = bench.engine(), bench.size
    half = s.context // 2

    def decode(streams: int) -> Callable[[], object]:
        return lambda: answers(engine, bench.requests(streams, half, 2 * s.output))

    def mixed() -> None:
        vocabulary = s.config["vocab_size"]
        requests = endless_requests("random", vocabulary, engine.max_context, bench.seed, s.trace_scale, 1.0)
        closed_loop_rate(engine, requests, max(2, s.streams // 4), bench.seconds)

    return [
        errors_under(engine, "1 stream", decode(1)),
        errors_under(engine, f"{s.streams} streams", decode(s.streams)),
        errors_under(engine, "a service's requests", mixed),
    ]


def errors_under(engine: Engine, load: str, run: Callable[[], object]) -> Row:
    progress(f"predictions under {load}")
    watch = Watch(engine)
    with watch.running():
        run()
    errors = sorted(abs(ratio - 1) for ratio in watch.ratios)
    if not errors:
        raise RuntimeError(f"no step was seen under {load}")
    middle = statistics.median(errors)
    return {
        "load": load,
        "steps": len(errors),
        "predicted / measured": statistics.median(watch.ratios),
        "median error": middle,
        "p90 error": errors[int(0.9 * (len(errors) - 1))],
        **aim(middle, at_most=0.08),
    }
