"""A real engine on a GPU that is only a clock: what is launched takes the seconds that are said, and time passes where
the engine waits, or the CPU is busy. Minutes of load take a second, and are the same at every run."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Output, Request, SamplingParams, active, co_serving, requests, steps
from coserve.engine import engine as engine_module
from coserve.engine.active import Sampled
from coserve.engine.background import Slice
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.clock import GpuClock
from coserve.engine.load import Load
from coserve.engine.runner import Flight, Landed
from coserve.models.cost import ModelCost
from coserve.models.decoder import Decoder
from coserve.models.tokenizer import Tokenizer
from coserve.roofline import Chip, Roofline, Work

# Llama 3.1 8B in bfloat16 on an H200, about as in docs/benchmarks.md.
CHIP = Chip("virtual", "bfloat16", bandwidth=4.25e12, flops=6.0e14, efficiency=0.8, overlap=0.7)
COST = ModelCost(32, 218_103_808, 192_937_984, 525_336_576, 436_207_616, 385_875_968, 1_050_673_152, 4096, 2048, 2)
SLICE_SECONDS = 0.002  # of the GPU, for a layer of one sequence of 2048 tokens, forward or backward
LAUNCH_SECONDS = 0.003  # of the CPU, to launch a slice of any size
SETTLE_SECONDS = 0.0003  # of the CPU, behind a step that has landed
FIRST_SECONDS = 0.06  # of the GPU, where a slice of a size is the first one


class VirtualGpu:
    """Its time, and until when it has work."""

    def __init__(self) -> None:
        self.now = self.busy_until = 0.0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._number), happens))

    def launch(self, seconds: float) -> float:
        """Behind all that was launched before; when it will have ended."""
        self.busy_until = max(self.now, self.busy_until) + seconds
        return self.busy_until

    def wait(self, until: float) -> None:
        """Let the time pass, and happen what happens meanwhile."""
        while self._coming and self._coming[0][0] <= until:
            when, _, happens = heapq.heappop(self._coming)
            self.now = max(self.now, when)
            happens()
        self.now = max(self.now, until)

    def wait_for_something(self) -> None:
        self.wait(self._coming[0][0])

    def work(self, seconds: float) -> None:
        """The CPU is busy."""
        self.wait(self.now + seconds)


class VirtualEvent:
    """As `torch.cuda.Event`."""

    def __init__(self, gpu: VirtualGpu):
        self._gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self._gpu.now, self._gpu.busy_until)

    def query(self) -> bool:
        return self._gpu.now >= self.at

    def synchronize(self) -> None:
        self._gpu.wait(self.at)

    def elapsed_time(self, end: VirtualEvent) -> float:
        return 1e3 * (end.at - self.at)


class VirtualRunner:
    """Steps take what the roofline says, and choose token 20."""

    def __init__(self, gpu: VirtualGpu):
        self._gpu, self._roofline = gpu, Roofline(CHIP)

    def launch(self, plan, ride) -> Flight:
        load = Load.of(plan.segments())
        seconds = self._roofline.seconds(COST.forward(load.rows, load.pairs, load.context, load.sampled))
        end = self._gpu.launch(seconds)

        def land() -> Landed:
            self._gpu.wait(end)
            self._gpu.work(SETTLE_SECONDS)
            return Landed([Sampled(20) for _ in plan.asking()], seconds)

        return Flight(plan, load, None, land)

    def goes_ahead(self, plan) -> bool:
        return all(segment.kind == "decode" for segment in plan.segments())

    def launch_ahead(self, plan) -> Flight:
        return self.launch(plan, None)

    def warm_up(self, blocks, most_rows, observe) -> None:
        pass


class VirtualTraining:
    """Passes over four sequences without end: a layer's forward takes as many of them as fit, its backward the same."""

    finished, begun = False, True
    LAYERS, SEQUENCES = 32, 4

    def __init__(self, gpu: VirtualGpu):
        self._gpu, self.seconds = gpu, 0.0  # of its slices
        self._cut: list[int] = []  # how the forward was
        self._left = self.LAYERS * self.SEQUENCES
        self._seen: set[tuple[str, int]] = set()

    def ride(self, max_rows: int) -> None:
        return None

    def next_slice(self, seconds: float) -> Slice:
        if not self._left:
            return self._slice("backward", self._cut[-1])
        most = (self._left - 1) % self.SEQUENCES + 1
        fitting = [count for count in range(1, most + 1) if count * SLICE_SECONDS <= seconds]
        return self._slice("forward", max(fitting, default=1))

    def _slice(self, kind: str, count: int) -> Slice:
        def run() -> None:
            first = (kind, count) not in self._seen
            self._seen.add((kind, count))
            self._gpu.launch(FIRST_SECONDS if first else count * SLICE_SECONDS)
            self._gpu.work(LAUNCH_SECONDS)
            self.seconds += count * SLICE_SECONDS
            if kind == "forward":
                self._left -= count
                self._cut.append(count)
            else:
                self._cut.pop()
                self._left = 0 if self._cut else self.LAYERS * self.SEQUENCES

        return Slice(kind, 2048 * count, Work(0.0, count * SLICE_SECONDS * CHIP.flops), run)

    def give_way(self) -> bool:
        return False

    def failed(self, error: Exception) -> None:
        raise error


@dataclass(frozen=True)
class Arrival:
    at: float
    prompt: int  # tokens
    output: int


@dataclass
class Served:
    """What those who were served have seen, in seconds, and what training had."""

    gaps: list[float] = field(default_factory=list)  # between two tokens
    waits: list[float] = field(default_factory=list)  # for the first one
    seconds: float = 0.0
    trained: float = 0.0

    @property
    def itl(self) -> float:
        return sum(self.gaps) / len(self.gaps)

    @property
    def training_share(self) -> float:
        """Of the speed that training has alone."""
        return self.trained / self.seconds


def quantile(seconds: Sequence[float], q: float) -> float:
    return sorted(seconds)[int(q * len(seconds))]


def arrivals(rate: float, number: int, seed: int = 0) -> list[Arrival]:
    """At random, so many a second; lengths as of a conversational service: most are short, some long."""
    rng, at, coming = random.Random(seed), 0.0, []
    for _ in range(number):
        at += rng.expovariate(rate)
        prompt, output = (int(rng.lognormvariate(mean, 0.9)) for mean in (6.6, 5.0))
        coming.append(Arrival(at, min(4000, prompt + 1), min(1000, output + 2)))
    return coming


def virtual_engine(checkpoint: Path, gpu: VirtualGpu, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Engine:
    for module in (engine_module, active, co_serving, requests, steps):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    monkeypatch.setattr(engine_module, "make_runner", lambda decoder, cache, **_: VirtualRunner(gpu))
    monkeypatch.setattr(engine_module, "takes_rides", lambda decoder: False)
    monkeypatch.setattr(
        BackgroundQueue,
        "on",
        lambda device, estimator: BackgroundQueue(estimator, GpuClock(lambda: VirtualEvent(gpu))),
    )
    monkeypatch.setattr(Decoder, "cost", COST)
    engine = Engine(
        Decoder.from_directory(checkpoint, dtype=torch.float32),
        Tokenizer.from_directory(checkpoint),
        "tiny",
        roofline=Roofline(CHIP),
        config=EngineConfig(kv_cache_tokens=64 * 2048, max_waiting=1 << 20, **config).on("cuda"),
    )
    engine.max_context = 1 << 20  # nothing is computed
    return engine


def serve(engine: Engine, gpu: VirtualGpu, coming: Sequence[Arrival], *, training: bool = False) -> Served:
    """Until all are answered."""
    served, work, answered = Served(), VirtualTraining(gpu), 0
    if training:
        engine._background.add(work)

    def come(one: Arrival) -> None:
        last = [gpu.now]

        def note(output: Output) -> None:
            nonlocal answered
            if output.token_id is not None:
                (served.gaps if len(last) > 1 else served.waits).append(gpu.now - last[-1])
                last.append(gpu.now)
            answered += output.finish_reason is not None

        params = SamplingParams(max_tokens=one.output, temperature=0, ignore_eos=True)
        engine.submit(Request((17,) * one.prompt, params, "tiny"), note)

    for one in coming:
        gpu.at(one.at, lambda one=one: come(one))
    while answered < len(coming):
        engine._inbox.read()
        if engine._flight is not None or engine.scheduler.has_work:
            engine.step()
        elif not engine._run_idle_slice():
            gpu.wait_for_something()
    served.seconds, served.trained = gpu.now, work.seconds
    return served
