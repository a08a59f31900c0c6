"""The load of a step: how many rows, pairs and cached tokens its cost depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coserve.engine.segment import Segment


@dataclass(frozen=True)
class Load:
    """What the cost of a pass depends on."""

    rows: int = 0
    pairs: int = 0  # of query and key in attention
    context: int = 0  # cached tokens that attention reads
    sampled: int = 0

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Load:
        return cls(
            sum(len(s.tokens) for s in segments),
            sum(len(s.tokens) * (s.start + len(s.tokens)) for s in segments),
            sum(s.start + len(s.tokens) for s in segments),
            sum(s.sample for s in segments),
        )

    def plus(self, start: int, length: int, *, sample: bool) -> Load:
        """With a segment more."""
        end = start + length
        return Load(self.rows + length, self.pairs + length * end, self.context + end, self.sampled + sample)
