"""Runs steps: a plan's segments through the decoder, and the sampling. Here where the tensors are a CPU's.

A step is launched, and lands later: on a GPU (`engine.gpu`) the engine has its hands free between the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from coserve.engine.active import ActiveRequest, Sampled
from coserve.engine.batch import Batch, Ride
from coserve.engine.load import Load
from coserve.engine.plan import Plan
from coserve.engine.sampler import sample
from coserve.engine.segment import Segment
from coserve.kernels import KVCache, LoraLayer
from coserve.kernels.gpu import on_gpu
from coserve.models.decoder import Decoder

Observe = Callable[[Load, float], None]  # what a step's load was, and the seconds that it took


@dataclass(frozen=True)
class Landed:
    """What a step has brought: a token for each segment that asked, in the plan's order, and how long it took.

    None instead of a token: it could not be chosen this time, and is computed again in another step.
    """

    sampled: Sequence[Sampled | None]
    seconds: float


@dataclass(frozen=True)
class Flight:
    """A step on its way."""

    plan: Plan
    load: Load
    ride: Ride | None
    land: Callable[[], Landed]  # waits for it


class Runner(Protocol):
    def launch(self, plan: Plan, ride: Ride | None) -> Flight:
        """Begin to compute a step; the one before has landed."""

    def goes_ahead(self, plan: Plan) -> bool:
        """Whether the step after this plan's could be launched before this one lands."""

    def launch_ahead(self, plan: Plan) -> Flight:
        """Launch a step of `Scheduler.plan_ahead`, while the one before it is on its way."""

    def warm_up(self, blocks: Sequence[int], most_rows: int, observe: Observe) -> None:
        """A few steps over made-up tokens, before anybody is served, so that the first requests meet warm code.

        `blocks` of the cache may be written to; they hold `most_rows` or more. `observe` is told what each step took.
        """

    def forget(self) -> None:
        """The model's tensors are about to move: what was made of their addresses is made again when needed."""

    def give_way(self) -> None:
        """A launch found no memory, and none is on its way: give back all memory of what can be made again."""

    def let_go(self, adapter: Sequence[LoraLayer]) -> None:
        """An adapter was unloaded: its memory is wanted back when the requests that have it end."""


class CpuRunner:
    """Computes at once: what it launches has landed."""

    _WARM_UP_SECONDS = 0.5
    _WARM_UP_ROWS = (1, 1, 1, 4, 4, 16, 16, 64, 64)

    def __init__(self, decoder: Decoder, cache: KVCache):
        self._decoder, self._cache = decoder, cache

    def launch(self, plan: Plan, ride: Ride | None) -> Flight:
        started = time.perf_counter()
        batch = Batch.of([*plan.segments(), *(ride.segments if ride else ())])
        sampled = self._compute(batch, plan.asking(), ride)
        landed = Landed(sampled, time.perf_counter() - started)
        return Flight(plan, batch.load, ride, lambda: landed)

    def goes_ahead(self, plan: Plan) -> bool:
        return False

    def launch_ahead(self, plan: Plan) -> Flight:
        raise NotImplementedError("a step on a CPU has landed when the next one could be launched")

    def warm_up(self, blocks: Sequence[int], most_rows: int, observe: Observe) -> None:
        begun = time.perf_counter()
        for rows in self._WARM_UP_ROWS:
            if time.perf_counter() - begun > self._WARM_UP_SECONDS:
                return  # a large model's first request is its own warm-up, rather than waiting for one
            batch = Batch.of([made_up(min(rows, most_rows), blocks)])
            started = time.perf_counter()
            with torch.inference_mode():
                self._decoder.logits(self._forward(batch, None)).argmax(-1).tolist()
            observe(batch.load, time.perf_counter() - started)

    def forget(self) -> None:
        self._decoder.forget_addresses()

    def give_way(self) -> None:
        pass

    def let_go(self, adapter: Sequence[LoraLayer]) -> None:
        pass

    def _compute(self, batch: Batch, asking: Sequence[ActiveRequest], ride: Ride | None) -> list[Sampled]:
        with torch.inference_mode():
            hidden = self._forward(batch, ride)
            return sample(self._decoder.logits(hidden), asking) if asking else []

    def _forward(self, batch: Batch, ride: Ride | None) -> Tensor:
        """The hidden states of the rows that are sampled from."""
        keep = ride.keep_of(batch.rows) if ride else None
        hidden = self._decoder.forward(batch.token_ids, batch.layout, self._cache, batch.adapters, keep)
        return hidden[batch.logit_rows]


def made_up(rows: int, blocks: Sequence[int]) -> Segment:
    """A prompt of so many tokens, as good as any to time a step with."""
    return Segment("prefill", [0] * rows, 0, blocks, sample=True)


def takes_rides(decoder: Decoder) -> bool:
    """Whether train tokens go along in steps: on a GPU it would cost a step its graph, which is worth more."""
    return not on_gpu(decoder.embed)


def make_runner(decoder: Decoder, cache: KVCache, *, rows: int, blocks: int, scratch: int) -> Runner:
    """What runs steps where the decoder lies.

    `rows`: requests of a step at most. `blocks`: of a sequence at most. `scratch`: a block of the cache for nobody.
    """
    if not on_gpu(decoder.embed):
        return CpuRunner(decoder, cache)
    from coserve.engine.gpu.card import Cuda  # needs Triton
    from coserve.engine.gpu.runner import GpuRunner

    return GpuRunner(decoder, cache, Cuda(decoder.embed.device), rows=rows, blocks=blocks, scratch=scratch)
