"""The engine's client, with a watch: requests in an open or a closed loop, and when each token came."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.report import Row
from benchmarks.workload import Arrival
from coserve.engine import Engine, Output, Request

_NAP = 0.05  # seconds between two looks at whether a run is over


@dataclass(frozen=True)
class Window:
    """The part of a run that counts, on `time.perf_counter`'s clock.

    What comes before warms up; what comes after keeps the load on until the last figure is known.
    """

    start: float
    end: float

    @classmethod
    def after(cls, warm_up: float, seconds: float) -> Window:
        start = time.perf_counter() + warm_up
        return cls(start, start + seconds)

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def __contains__(self, when: float) -> bool:
        return self.start <= when < self.end


@dataclass
class Timeline:
    """One request: when it was due (sent later counts as waiting), and when each of its tokens came."""

    request: Request
    due: float
    tokens: list[float] = field(default_factory=list)
    finished: bool = False
    error: Exception | None = None

    def note(self, output: Output) -> None:
        """The request's `on_output`."""
        if output.token_id is not None:
            self.tokens.append(time.perf_counter())
        self.finished, self.error = output.finish_reason is not None, output.error


def answers(engine: Engine, requests: Sequence[Request], patience: float = 600.0) -> list[Timeline]:
    """Hand requests over, one right after the other, and wait until all are answered.

    Raises the error of a request that failed, and `TimeoutError` if none ends for `patience` seconds.
    """
    begun = time.perf_counter()
    timelines = [Timeline(request, begun) for request in requests]
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def watch(timeline: Timeline) -> Callable[[Output], None]:
        def note(output: Output) -> None:
            timeline.note(output)
            if timeline.finished:
                ended.put(None)

        return note

    for timeline in timelines:
        engine.submit(timeline.request, watch(timeline))
    for _ in timelines:
        try:
            ended.get(timeout=patience)
        except queue.Empty:
            raise TimeoutError(f"the engine ended no request for {patience:g} seconds") from None
    for timeline in timelines:
        if timeline.error is not None:
            raise timeline.error
    return timelines


def open_loop(
    engine: Engine, arrivals: Iterator[Arrival], window: Window, settled: Callable[[], bool], patience: float
) -> list[Timeline]:
    """Send requests when they are due, whether or not earlier ones were answered.

    The load stays on after the window until every request that was due in it has its first token and
    `settled()` (training's figure is known, too), at most `patience` seconds. Leaves nothing in the engine.
    """
    timelines: list[Timeline] = []
    origin = time.perf_counter()

    def over() -> bool:
        now = time.perf_counter()
        if now < window.end:
            return False
        answered = all(t.tokens for t in timelines if t.due < window.end)
        return (answered and settled()) or now > window.end + patience

    for arrival in arrivals:
        due = origin + arrival.at
        while (left := due - time.perf_counter()) > 0 and not over():
            time.sleep(min(left, _NAP))
        if over():
            break
        timelines.append(Timeline(arrival.request, due))
        engine.submit(arrival.request, timelines[-1].note)
    _cancel(engine, timelines)
    return timelines


def closed_loop_rate(engine: Engine, requests: Iterator[Request], concurrency: int, seconds: float) -> float:
    """Requests per second that the engine completes while `concurrency` of them are always in flight.

    Counted for `seconds`, once as many as are in flight have been answered; one that is in part answered in
    this time counts in part.
    """
    timelines: list[Timeline] = []
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def send() -> None:
        timeline = Timeline(next(requests), time.perf_counter())

        def note(output: Output) -> None:
            timeline.note(output)
            if timeline.finished:
                ended.put(None)

        timelines.append(timeline)
        engine.submit(timeline.request, note)

    for _ in range(concurrency):
        send()
    for _ in range(concurrency):
        ended.get()
        send()
    window = Window.after(0.0, seconds)
    while (left := window.end - time.perf_counter()) > 0:
        try:
            ended.get(timeout=left)
        except queue.Empty:
            break
        send()
    _cancel(engine, timelines)
    answered = sum(sum(when in window for when in t.tokens) / (t.request.params.max_tokens or 1) for t in timelines)
    return answered / window.seconds


def serving_figures(timelines: Sequence[Timeline], window: Window) -> Row:
    """Latencies and speed of what happened in the window.

    A request still without its first token has waited since it was due, and counts with that.
    """
    now = time.perf_counter()
    gaps = [b - a for t in timelines for a, b in itertools.pairwise(t.tokens) if b in window]
    waits = [(t.tokens[0] if t.tokens else now) - t.due for t in timelines if t.due in window]
    tokens = sum(when in window for t in timelines for when in t.tokens)
    return {
        **_percentiles_ms("itl", gaps),
        **_percentiles_ms("ttft", waits),
        "output_tokens_per_s": tokens / window.seconds,
    }


NO_SERVING: Row = {
    "itl_ms_p50": None,
    "itl_ms_p99": None,
    "ttft_ms_p50": None,
    "ttft_ms_p99": None,
    "output_tokens_per_s": 0.0,
}


def _percentiles_ms(name: str, seconds: Sequence[float]) -> Row:
    if not seconds:
        return {f"{name}_ms_p50": None, f"{name}_ms_p99": None}
    p50, p99 = np.percentile(seconds, [50, 99])
    return {f"{name}_ms_p50": 1e3 * float(p50), f"{name}_ms_p99": 1e3 * float(p99)}


def _cancel(engine: Engine, timelines: Sequence[Timeline]) -> None:
    """End what is in flight, and wait until the engine has nothing to serve."""
    for timeline in timelines:
        if not timeline.finished:
            engine.cancel(timeline.request.id)
    while not all(timeline.finished for timeline in timelines):
        time.sleep(_NAP / 10)
