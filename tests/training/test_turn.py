"""Jobs in the queue: who waits takes no memory, and who has ended gives it back."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import torch

from coserve.engine import Engine, EngineConfig, SamplingParams
from coserve.errors import OutOfMemory
from coserve.training import TrainingJob, jobs
from tests.tiny import tiny_checkpoint
from tests.training.test_training import Listener, spec_for


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(checkpoint):
    config = EngineConfig(kv_cache_tokens=1024)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        yield engine


class Made:
    """The trainers that were made, and what they train with, for as long as somebody holds it."""

    def __init__(self, monkeypatch):
        self.trainers, self.go_on, self._make = weakref.WeakSet(), threading.Event(), jobs.Trainer
        self.count, self.finished, self.workspaces = 0, 0, weakref.WeakSet()
        self.go_on.set()
        monkeypatch.setattr(jobs, "Trainer", self.make)

    def make(self, *args, **options):
        self.count += 1
        assert self.go_on.wait(60)
        trainer = self._make(*args, **options)
        self.trainers.add(trainer)
        self.workspaces.add(trainer._workspace)
        self.finished += 1
        return trainer


@pytest.fixture
def made(monkeypatch):
    gc.collect()
    gc.disable()  # memory is wanted back at once
    yield Made(monkeypatch)
    gc.enable()


def begin(engine, tmp_path, name, **config) -> tuple[TrainingJob, Listener]:
    directory, listener = tmp_path / name, Listener()
    directory.mkdir()
    job = TrainingJob(engine, spec_for(directory, name=f"ft:tiny:{name}:1", **config), listener)
    job.start()
    while not any(event.status == "queued" or event.kind == "failed" for event in listener.events):
        time.sleep(0.005)
    return job, listener


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_job_that_waits_has_no_trainer_until_the_one_before_it_has_none(engine, made, tmp_path):
    first, one = begin(engine, tmp_path, "first", n_epochs=500)
    until(lambda: one.steps)
    _, two = begin(engine, tmp_path, "second")
    _, three = begin(engine, tmp_path, "third")
    time.sleep(0.1)
    assert made.count == 1 and not two.steps
    first.cancel()
    assert two.wait()[-1].kind == three.wait()[-1].kind == "finished"
    assert made.count == 3
    until(lambda: not made.workspaces and not made.trainers)


@pytest.mark.parametrize("while_it_is_paused", [False, True])
def test_a_job_that_is_cancelled_gives_its_memory_back(engine, made, tmp_path, while_it_is_paused):
    job, listener = begin(engine, tmp_path, "job", n_epochs=500)
    until(lambda: listener.steps)
    if while_it_is_paused:
        job.pause()
    assert made.workspaces
    job.cancel()
    until(lambda: not made.workspaces and not made.trainers)


@pytest.mark.parametrize("protect", [1.0, "goals"])
def test_a_job_that_is_cancelled_gives_its_memory_back_where_training_never_has_a_turn(
    checkpoint, made, tmp_path, protect
):
    config = EngineConfig(kv_cache_tokens=4096, protect=protect, itl_goal=1e-6)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        job, listener = begin(engine, tmp_path, "job", n_epochs=500)
        until(lambda: listener.steps)
        tokens = engine.generate(range(5, 9), SamplingParams(max_tokens=400, ignore_eos=True))
        next(tokens)
        job.cancel()
        _, behind = begin(engine, tmp_path, "behind")
        for _ in tokens:
            pass
        assert not made.workspaces or made.count == 2
        until(lambda: made.count == 2)
        assert behind.wait()[-1].kind == "finished"


def test_a_job_that_is_cancelled_while_the_engine_sleeps_gives_its_memory_back(engine, made, tmp_path):
    job, listener = begin(engine, tmp_path, "job", n_epochs=500)
    until(lambda: listener.steps)
    engine.sleep()
    job.cancel()
    until(lambda: not made.workspaces and not made.trainers)
    engine.wake()


def test_a_job_that_is_paused_before_its_turn_takes_no_memory(engine, made, tmp_path):
    first, one = begin(engine, tmp_path, "first", n_epochs=500)
    until(lambda: one.steps)
    second, two = begin(engine, tmp_path, "second")
    second.pause()
    first.cancel()
    until(lambda: not made.workspaces)
    time.sleep(0.1)
    assert made.count == 1
    second.resume()
    assert two.wait()[-1].kind == "finished"


def test_a_job_whose_turn_comes_as_the_engine_ends_asleep_is_left_for_the_next_start(checkpoint, made, tmp_path):
    config = EngineConfig(kv_cache_tokens=1024)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        asleep = threading.Event()

        def fall_asleep() -> None:  # a turn that has begun waits until the engine wakes
            engine.sleep()
            asleep.set()

        job, listener = begin(engine, tmp_path, "first", n_epochs=500)
        until(lambda: listener.steps)
        _, waiting = begin(engine, tmp_path, "second")
        engine.call(fall_asleep)
        assert asleep.wait(60)
        job.cancel()
        turn = engine._background._works[1]
        turn.next_slice(0.0)
    until(lambda: not any(thread.name == "coserve-turn" for thread in threading.enumerate()))
    assert made.count == 1 and {event.kind for event in waiting.events} == {"status"}


def test_a_job_that_fails_gives_its_memory_back(engine, made, tmp_path):
    _, listener = begin(engine, tmp_path, "job", n_epochs=500)
    until(lambda: listener.steps)
    engine.call(lambda: engine._background.end_first(OutOfMemory("none is left")))
    assert listener.wait()[-1].error.message == "none is left"
    until(lambda: not made.workspaces and not made.trainers)


@pytest.mark.parametrize("what", ["cancel", "fail", "pause"])
def test_a_job_may_end_or_pause_while_its_trainer_is_being_made(engine, made, tmp_path, what):
    made.go_on.clear()
    job, listener = begin(engine, tmp_path, "job")
    until(lambda: made.count == 1)
    if what == "fail":
        engine.call(lambda: engine._background.end_first(OutOfMemory("none is left")))
        assert listener.wait()[-1].error.message == "none is left"
    else:
        job.cancel() if what == "cancel" else job.pause()
    made.go_on.set()
    until(lambda: made.finished)
    time.sleep(0.1)
    assert not listener.steps
    if what == "pause":
        job.resume()
        assert listener.wait()[-1].kind == "finished"
    until(lambda: not made.workspaces and not made.trainers)


def test_a_job_whose_trainer_cannot_be_made_fails_and_the_next_one_runs(engine, made, tmp_path, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(made, "_make", full)
        _, failed = begin(engine, tmp_path, "failed")
        assert isinstance(failed.wait()[-1].error, OutOfMemory)
    _, next_one = begin(engine, tmp_path, "next")
    assert next_one.wait()[-1].kind == "finished"
