"""A job on an engine that sleeps now and then learns what it would have learnt."""

from __future__ import annotations

import time

import pytest
import torch
from safetensors.torch import load_file

from coserve.engine import Engine, EngineConfig
from coserve.engine import engine as engine_module
from coserve.kernels import paged
from coserve.kernels.device import CPU
from coserve.models import loading
from coserve.models.placement import OnGpu
from coserve.training import TrainingJob
from tests.tiny import tiny_checkpoint
from tests.training.test_training import Listener, spec_for


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """The CPU's memory stands in for a GPU's."""
    monkeypatch.setattr(loading, "placement_on", lambda device: OnGpu(CPU))
    monkeypatch.setattr(engine_module, "is_gpu", lambda device: True)
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
                told = len(listener.events)
                time.sleep(0.02)
                assert len(listener.events) == told
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
