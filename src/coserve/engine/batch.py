"""The batch: a flat run of tokens cut into segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coserve.engine.load import Load
from coserve.engine.segment import Segment
from coserve.kernels import PagedLayout
from coserve.models.decoder import AdapterRows


@dataclass(frozen=True)
class Ride:
    """Train tokens that go along in a batch. `keep(layer, x)` gets each layer's input [rows, hidden] of these rows,
    and the last layer's output as layer `num_hidden_layers`; `done` is called after the pass."""

    segments: Sequence[Segment]
    keep: Callable[[int, Tensor], None]
    done: Callable[[], None]

    @property
    def rows(self) -> int:
        return sum(len(s.tokens) for s in self.segments)

    def keep_of(self, rows: int) -> Callable[[int, Tensor], None]:
        """`keep` for the layer inputs of a whole batch of `rows`, of which these tokens are the last."""
        first = rows - self.rows
        return lambda layer, x: self.keep(layer, x[first:])


@dataclass(frozen=True)
class Batch:
    """Segments laid out for the decoder. Train segments come last."""

    segments: Sequence[Segment]
    token_ids: Tensor  # int64 [rows]
    layout: PagedLayout
    adapters: Sequence[AdapterRows]
    logit_rows: Tensor  # int64: the rows that are sampled from, in the order of the segments that asked
    pairs: int  # (query, key) pairs in attention
    context: int  # cached tokens that attention reads

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def load(self) -> Load:
        return Load(self.rows, self.pairs, self.context, self.logit_rows.shape[0])

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            layout=self.layout.to(device),
            logit_rows=self.logit_rows.to(device),
        )

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Batch:
        """Segments of one adapter should be neighbours: each run of them is one pair of products in every module."""
        tokens: list[int] = []
        adapters: list[AdapterRows] = []
        logit_rows: list[int] = []
        pairs = context = 0
        for segment in segments:
            first = len(tokens)
            tokens.extend(segment.tokens)
            if segment.sample:
                logit_rows.append(len(tokens) - 1)
            if segment.adapter is not None:
                if adapters and adapters[-1].end == first and adapters[-1].layers is segment.adapter:
                    first = adapters.pop().start
                adapters.append(AdapterRows(first, len(tokens), segment.adapter))
            length = len(segment.tokens)
            pairs += length * segment.start + length * (length + 1) // 2
            context += segment.start + length
        return cls(
            segments,
            _int64(tokens),
            PagedLayout.build(
                [(s.start, len(s.tokens), s.blocks) for s in segments], [s.kind == "decode" for s in segments]
            ),
            adapters,
            _int64(logit_rows),
            pairs,
            context,
        )


def _int64(numbers: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))  # in a fifth of the time that torch takes
