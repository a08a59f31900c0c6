"""Steps with short prompts as graphs: launched one by one, their operations take the CPU longer than the GPU.

A graph is for so many rows, segments and tokens to choose. What a step lacks of them is filled up: with rows that write
to a block of the cache which nobody reads, and with segments of nothing. Where the rows and segments lie, the GPU is
told in one copy.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coserve.engine.batch import Batch, Ride
from coserve.engine.gpu.card import Card
from coserve.engine.gpu.graphs import UNLIMITED, at_least
from coserve.engine.shortage import Shortage
from coserve.kernels import BLOCK_SIZE, KVCache, PagedLayout
from coserve.kernels.memory import is_out_of_memory
from coserve.kernels.paged import TILE_ROWS
from coserve.models.decoder import Decoder

log = logging.getLogger(__name__)

MOST_ROWS = 512  # of larger steps the GPU's time is longer than that of their launches
MOST_PROMPTS = 32
_ROWS = (32, 64, 128, 192, 256, 384, MOST_ROWS)  # from 160 or so on each row costs time
_PROMPTS = (4, MOST_PROMPTS)
_CONTEXTS = (2048, UNLIMITED)


@dataclass(frozen=True)
class PromptKind:
    """A step that a graph is captured for, and whatever is smaller."""

    rows: int
    decoding: int  # segments
    prompts: int  # segments
    sampled: int  # rows
    context: int  # keys of the longest one that decodes

    @property
    def parts(self) -> tuple[int, ...]:
        """What the GPU is told before the block tables, in integers: token ids, positions, slots, segments, tiles, and
        which rows are sampled from. All are multiples of 4, so that each begins at 16 bytes: elsewhere, kernels are
        others."""
        segments = self.decoding + self.prompts
        tiles = self.rows // TILE_ROWS + segments
        return self.rows, self.rows, self.rows, 4 * segments, 4 * tiles, self.sampled

    def cut(self, numbers: Tensor) -> Sequence[Tensor]:
        """int32 [n] into the parts, and the block tables behind them."""
        return numbers.split([*self.parts, len(numbers) - sum(self.parts)])


class PromptGraphs:
    """Captured when first needed. `rows`: requests of a step at most, a multiple of 4; `blocks`: of one of them;
    `scratch`: a block that belongs to nobody."""

    def __init__(self, decoder: Decoder, cache: KVCache, card: Card, *, rows: int, blocks: int, scratch: int):
        self._decoder, self._cache, self._scratch = decoder, cache, scratch
        self._requests = sorted({0, min(16, rows), min(64, rows), rows})  # up to 16 attention has a kernel of its own
        largest = sum(PromptKind(MOST_ROWS, rows, MOST_PROMPTS, rows, UNLIMITED).parts) + rows * blocks
        self._staged = card.host(largest, dtype=torch.int32)
        self._told = torch.zeros(largest, dtype=torch.int32, device=card.device)
        self._logits = torch.zeros(rows, decoder.config.vocab_size, dtype=decoder.dtype, device=card.device)
        self._pool = card.pool()
        self._captured: dict[PromptKind, Callable[[], Tensor]] = {}
        self._resting_until = -math.inf

    def kind(self, batch: Batch, ride: Ride | None) -> PromptKind | None:
        """The smallest kind of step in which a batch finds room; None if there is none for it."""
        steps, segments = batch.layout.decoding, len(batch.segments)
        too_many = segments > self._requests[-1] or segments - steps > MOST_PROMPTS
        if ride is not None or batch.adapters or batch.rows > MOST_ROWS or too_many:
            return None
        if time.perf_counter() < self._resting_until:
            return None
        return PromptKind(
            at_least(_ROWS, batch.rows),
            at_least(self._requests, steps),
            at_least(_PROMPTS, segments - steps),
            at_least(self._requests, batch.logit_rows.shape[0]),
            at_least(_CONTEXTS, batch.layout.context),
        )

    def capture(self, kind: PromptKind, batch: Batch) -> bool:
        """Have a graph for such a step, if one can be had; whether that was tried."""
        if kind in self._captured:
            return False
        self._tell(kind, batch)
        self._step(kind)  # compiles what has not run yet
        try:
            self._captured[kind] = self._pool.capture(lambda: self._step(kind))
        except Exception as error:
            if is_out_of_memory(error):  # nobody has to give way: the step itself has found its memory
                self.rest()
            else:
                log.warning("steps with prompts are launched operation by operation from now on: %s", error)
                self._resting_until = math.inf
        return True

    def run(self, kind: PromptKind, batch: Batch) -> Tensor:
        """Launch a step, when the one before has landed: the logits [sampled, vocab], there until the next one."""
        self._tell(kind, batch)
        launch = self._captured.get(kind) or (lambda: self._step(kind))
        return launch()[: batch.logit_rows.shape[0]]

    def forget(self) -> None:
        """The tensors that the graphs use are about to move."""
        self._captured.clear()

    def rest(self) -> None:
        """Memory is short: have no graphs, which need more of it, for a while."""
        self.forget()
        self._resting_until = max(self._resting_until, time.perf_counter() + Shortage.SECONDS)

    @torch.inference_mode()
    def _step(self, kind: PromptKind) -> Tensor:
        token_ids, positions, slots, segments, tiles, sampled, tables = kind.cut(self._told)
        layout = PagedLayout(
            positions,
            slots,
            tiles.view(-1, 4),
            tables,
            segments.view(-1, 4),
            decoding=kind.decoding,
            context=kind.context,
            longest=kind.rows,
        )
        hidden = self._decoder.forward(token_ids, layout, self._cache)
        logits = self._logits[: kind.sampled]
        if kind.sampled:
            logits.copy_(self._decoder.logits(hidden[sampled]))
        return logits

    def _tell(self, kind: PromptKind, batch: Batch) -> None:
        length = self._stage(kind, batch)
        self._told[:length].copy_(self._staged[:length], non_blocking=True)

    def _stage(self, kind: PromptKind, batch: Batch) -> int:
        """Write down a step; returns how many integers that takes."""
        layout, steps = batch.layout, batch.layout.decoding
        parts = [part.numpy() for part in kind.cut(self._staged)]
        token_ids, positions, slots, segments, tiles, sampled, tables = parts
        segments, tiles, end = segments.reshape(-1, 4), tiles.reshape(-1, 4), len(layout.tables)
        _fill(token_ids, batch.token_ids, 0)
        _fill(positions, layout.positions, 0)
        _fill(slots, layout.slots, self._scratch * BLOCK_SIZE)
        _fill(segments[: kind.decoding], layout.segments[:steps], (0, 0, -1, 0))  # which sees no key
        _fill(segments[kind.decoding :], layout.segments[steps:], 0)
        _fill(tiles, layout.tiles, 0)
        _fill(sampled, batch.logit_rows, 0)
        tables[:end] = layout.tables
        return sum(kind.parts) + end


def _fill(part: np.ndarray, known: Tensor, filler: int | tuple[int, ...]) -> None:
    part[: len(known)], part[len(known) :] = known, filler
