"""One process that owns one chip: it holds the base weights once, and steps.

Here live the batch and its segments, the KV cache, the scheduler, the sampler, the engine's loop and its statistics.
The engine knows priorities, deadlines and *background work*; it knows nothing of HTTP, prices, databases, Ray or LoRA
training. What needs torch is loaded when it is first used: a gateway, which has no engine, does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coserve.engine.config import EngineConfig
from coserve.engine.request import Output, Request, SamplingParams, TokenLogprob
from coserve.engine.stats import EngineStats, Histogram

if TYPE_CHECKING:
    from coserve.engine.background import BackgroundWork, Slice
    from coserve.engine.batch import Ride, Segment
    from coserve.engine.engine import Engine

__all__ = [
    "BackgroundWork",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Histogram",
    "Output",
    "Request",
    "Ride",
    "SamplingParams",
    "Segment",
    "Slice",
    "TokenLogprob",
]

_LATER = {
    "BackgroundWork": "background",
    "Slice": "background",
    "Ride": "batch",
    "Segment": "batch",
    "Engine": "engine",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"coserve.engine.{_LATER[name]}"), name)
    raise AttributeError(f"module 'coserve.engine' has no attribute {name!r}")
