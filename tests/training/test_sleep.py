"""A job on an engine that sleeps now and then learns what it would have learnt."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from coserve.engine import Engine, EngineConfig, sleep
from coserve.kernels import paged
from coserve.kernels.device import CPU
from coserve.models import loading
from coserve.models.placement import OnGpu
from coserve.training import TrainingJob, jobs
from tests.tiny import tiny_checkpoint
from tests.training.test_training import Listener, spec_for


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """The CPU's memory stands in for a GPU's."""
    monkeypatch.setattr(loading, "placement_on", lambda device: OnGpu(CPU))
    monkeypatch.setattr(sleep, "is_gpu", lambda device: True)
    monkeypatch.setattr(paged, "huge_empty", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    return tiny_checkpoint(tmp_path / "model", dtype=torch.float16)


def learnt(checkpoint, directory, *, naps: int) -> tuple[dict[str, torch.Tensor], int]:
    """The adapter, and how often the engine slept."""
    config, listener, slept = EngineConfig(kv_cache_tokens=1024), Listener(), 0
    with Engine.from_pretrained(checkpoint, device="cpu", dtype="float32", name="tiny", config=config) as engine:
        TrainingJob(engine, spec_for(directory, n_epochs=20), listener).start()
        while not listener.over.is_set() and slept < naps:
            if any(event.kind == "metrics" for event in listener.events):
                engine.sleep()
                told = listener.steps  # a checkpoint may still be written
                time.sleep(0.02)
                assert listener.steps == told
                engine.wake()
                slept += 1
            time.sleep(0.005)
        last = listener.wait()[-1]
    assert last.kind == "finished"
    return load_file(last.adapter_path / "adapter_model.safetensors"), slept


def test_a_job_learns_the_same_with_naps_between(checkpoint, tmp_path):
    for name in ("awake", "tired"):
        (tmp_path / name).mkdir()
    wanted, _ = learnt(checkpoint, tmp_path / "awake", naps=0)
    found, slept = learnt(checkpoint, tmp_path / "tired", naps=10)
    assert slept > 2 and found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() < 1e-4 * max(1.0, float(tensor.abs().max())), name


@pytest.fixture
def engine(checkpoint):
    config = EngineConfig(kv_cache_tokens=1024)
    with Engine.from_pretrained(checkpoint, device="cpu", dtype="float32", name="tiny", config=config) as engine:
        yield engine


@pytest.fixture
def making(monkeypatch):
    """Trainers that are being made, which takes the GPU's memory; each waits until it may go on."""
    making, go_on, made = threading.Event(), threading.Event(), jobs.Trainer

    def make(*args, **options):
        making.set()
        assert go_on.wait(60)
        return made(*args, **options)

    monkeypatch.setattr(jobs, "Trainer", make)
    return making, go_on


def queued(listener: Listener) -> bool:
    return any(event.status == "queued" for event in listener.events)


def test_a_job_prepared_while_the_engine_sleeps_takes_no_memory_until_it_wakes(engine, making, tmp_path):
    (begun, go_on), listener = making, Listener()
    go_on.set()
    engine.sleep()
    TrainingJob(engine, spec_for(tmp_path), listener).start()
    while not queued(listener):
        time.sleep(0.01)
    assert not begun.wait(0.3)
    engine.wake()
    assert listener.wait()[-1].kind == "finished"


def test_nobody_falls_asleep_while_a_job_takes_memory(engine, making, tmp_path):
    (begun, go_on), listener = making, Listener()
    TrainingJob(engine, spec_for(tmp_path), listener).start()
    assert begun.wait(60)
    sleeping = threading.Thread(target=engine.sleep)
    sleeping.start()
    sleeping.join(0.3)
    assert sleeping.is_alive() and not engine.asleep
    go_on.set()
    sleeping.join(60)
    assert engine.asleep and not any(event.kind == "metrics" for event in listener.events)
    engine.wake()
    assert listener.wait()[-1].kind == "finished"


def test_an_engine_that_ends_asleep_leaves_the_job_for_the_next_start(engine, making, tmp_path):
    (begun, go_on), listener = making, Listener()
    go_on.set()
    engine.sleep()
    job = TrainingJob(engine, spec_for(tmp_path), listener)
    job.start()
    while not queued(listener):
        time.sleep(0.01)
    engine.shutdown()
    [thread.join(60) for thread in threading.enumerate() if thread.name == f"coserve-{job.spec.id}"]
    assert not begun.is_set()
    assert {event.kind for event in listener.events} == {"status"}
