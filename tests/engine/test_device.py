"""The engine's `device`: checked before anything is loaded, told to who asks."""

from __future__ import annotations

import pytest
import torch

from coserve.engine import Engine, EngineConfig
from coserve.errors import InvalidRequest
from tests.tiny import tiny_checkpoint


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(InvalidRequest, match="device is 'cuda:99', which is not there"):
        Engine.from_pretrained(tmp_path / "no such directory", device="cuda:99")
    with pytest.raises(InvalidRequest, match="device is 'gpu'; it must be auto, cpu or cuda"):
        Engine.from_pretrained(tmp_path / "no such directory", device="gpu")


def test_an_engine_tells_its_device(tmp_path):
    config = EngineConfig(kv_cache_tokens=64, train_tokens=16)
    with Engine.from_pretrained(tiny_checkpoint(tmp_path), device="cpu", config=config) as engine:
        assert engine.device == torch.device("cpu")
