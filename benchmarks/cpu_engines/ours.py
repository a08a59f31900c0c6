"""coserve, as a program that imports it uses it, with a home, and steps so long that prompts are not cut for others."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from benchmarks.cpu_engines.setup import Setup
from benchmarks.decode import Ours
from benchmarks.models import BenchmarkModel
from coserve.engine import Engine, EngineConfig


class Coserve(Ours):
    def __init__(self, setup: Setup):
        options: dict[str, Any] = {"weights": setup.weights, "home": Path(setup.cache) / "coserve"}
        if "weights" not in inspect.signature(Engine.from_pretrained).parameters:
            if setup.weights != "bf16":
                raise ValueError(f"this coserve has no {setup.weights} weights")
            options = {}
        config = EngineConfig(max_num_seqs=setup.streams, max_batch_tokens=setup.chunk, itl_goal=60.0)
        super().__init__(BenchmarkModel(setup.name, Path(setup.checkpoint)), config=config, **options)
        cost = self.engine.cost
        self.weight_bytes = cost.forward(1, 0, 0, 1).bytes
        self.token_bytes = cost.forward(1, 1, 1, 1).bytes - self.weight_bytes
