"""Slices beside steps: as many as `protect` allows, and again when what they took too much has been earned."""

from __future__ import annotations

import threading
import time

import pytest

from coserve.engine import Engine, EngineConfig, Request, SamplingParams
from coserve.engine.background import Slice
from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.clock import GpuClock
from coserve.roofline import Work
from tests.tiny import tiny_checkpoint

TOKENS = 150


class Stream:
    """Its events happen when what was launched before them is done; `until` then, by `time.perf_counter`."""

    until = 0.0

    def event(self) -> StreamEvent:
        return StreamEvent(self)


class StreamEvent:
    def __init__(self, stream: Stream):
        self.stream, self.at = stream, 0.0

    def record(self) -> None:
        self.at = max(time.perf_counter(), self.stream.until)

    def query(self) -> bool:
        return time.perf_counter() >= self.at

    def synchronize(self) -> None:
        time.sleep(max(0.0, self.at - time.perf_counter()))

    def elapsed_time(self, end: StreamEvent) -> float:
        return 1e3 * (end.at - self.at)


class Beside(BackgroundQueue):
    beside = True


class Job:
    """Slices of a millisecond without end."""

    finished = False

    def __init__(self, stream: Stream):
        self.stream, self.launched = stream, 0

    def ride(self, max_rows: int) -> None:
        return None

    def next_slice(self, seconds: float) -> Slice:
        return Slice("job", 1, Work(0, 1e6), self._run)

    def _run(self) -> None:
        self.launched += 1
        self.stream.until = max(time.perf_counter(), self.stream.until) + 0.001

    def failed(self, error: Exception) -> None:
        raise error


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def launched_while_serving(checkpoint, *, balance: float = 0.0, **settings) -> int:
    """Slices of a job that is attached while a request decodes, until that has ended."""
    config = EngineConfig(kv_cache_tokens=1024, train_tokens=64, **settings)
    home = checkpoint.parent / "home"
    with Engine.from_pretrained(checkpoint, device="cpu", name="tiny", config=config, home=home) as engine:
        stream, done, outputs, launched = Stream(), threading.Event(), [], []
        engine._background = Beside(engine.estimator, GpuClock(event=stream.event))
        engine._slack.balance = balance
        job = Job(stream)

        def take(output) -> None:
            outputs.append(output)
            if len(outputs) == 3:
                engine.attach(job)
            if output.finish_reason:
                launched.append(job.launched)
                done.set()

        params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        engine.submit(Request((5, 6, 7), params, "tiny"), take)
        assert done.wait(60)
        job.finished = True
        return launched[0]


def test_a_debt_is_earned_again(checkpoint):
    """Also while no slice is in flight, as none can be then."""
    assert launched_while_serving(checkpoint, protect=3.0, balance=-0.005) > 0


def test_a_debt_is_not_forgiven(checkpoint):
    assert launched_while_serving(checkpoint, protect=3.0, balance=-1e6) == 0


def test_with_a_factor_of_one_nothing_runs_beside_steps(checkpoint):
    assert launched_while_serving(checkpoint, protect=1.0) == 0


def test_up_to_the_goals_slices_run_beside_steps(checkpoint):
    assert launched_while_serving(checkpoint, protect="goals", itl_goal=10.0) > TOKENS // 10
    assert launched_while_serving(checkpoint, protect="goals", itl_goal=1e-6) == 0


def test_what_a_step_took_beside_slices_is_not_learnt(checkpoint, monkeypatch):
    """Even if they are done by the time that it has landed."""
    config = EngineConfig(kv_cache_tokens=1024, train_tokens=64, protect=1e6)
    home = checkpoint.parent / "home"
    with Engine.from_pretrained(checkpoint, device="cpu", name="tiny", config=config, home=home) as engine:
        stream, shared = Stream(), []
        queue = engine._background = Beside(engine.estimator, GpuClock(event=stream.event))
        engine.attach(Job(stream))
        land, observe = engine._land, type(engine._predictor).observe

        def late(flight) -> None:
            queue.wait()
            shared.append(engine._shared)
            land(flight)

        def learn(self, load, seconds, *, riding=False) -> None:
            assert not shared[-1]
            observe(self, load, seconds, riding=riding)

        monkeypatch.setattr(engine, "_land", late)
        monkeypatch.setattr(type(engine._predictor), "observe", learn)
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        outputs = list(engine.generate((5, 6, 7), params))
        assert outputs[-1].finish_reason == "length" and any(shared)
