"""One process that owns one chip: it holds the base weights once, and steps.

Here live the batch and its segments, the KV cache, the scheduler, the sampler, the engine's loop and its statistics.
The engine knows priorities, deadlines and *background work*; it knows nothing of HTTP, prices, databases, Ray or LoRA
training.
"""

from coserve.engine.background import BackgroundWork, Slice
from coserve.engine.batch import Ride, Segment
from coserve.engine.config import EngineConfig
from coserve.engine.engine import Engine
from coserve.engine.request import Output, Request, SamplingParams, TokenLogprob
from coserve.engine.stats import EngineStats, Histogram

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
