"""How long a step will take: the model's counts of bytes and FLOPs, through the estimator that learns from steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coserve.engine.batch import Batch, Segment
from coserve.models.cost import ModelCost
from coserve.roofline import Estimator, Work

# The estimator's names for a forward pass, and for one with train tokens in it: their adapter costs extra.
STEP, RIDE = "step", "step with train tokens"


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


@dataclass(frozen=True)
class Predictor:
    """Seconds of forward passes of one model on one chip."""

    cost: ModelCost
    estimator: Estimator

    def seconds(self, segments: Sequence[Segment], extra_rows: int = 0) -> float:
        """A pass over these segments and `extra_rows` train tokens."""
        return self.load_seconds(Load.of(segments), extra_rows)

    def load_seconds(self, load: Load, extra_rows: int = 0) -> float:
        kind = RIDE if extra_rows and RIDE in self.estimator.corrections else STEP
        rows = load.rows + extra_rows
        return self.estimator.seconds(kind, rows, self.cost.forward(rows, load.pairs, load.context, load.sampled))

    def decoding_seconds(self, requests: int, context: int, rows: int) -> float:
        """A pass over `rows` rows, in which so many requests decode with `context` cached tokens together."""
        return self.estimator.seconds(STEP, rows, self.cost.forward(rows, context, context, requests))

    def work(self, batch: Batch) -> Work:
        return self.cost.forward(batch.rows, batch.pairs, batch.context, len(batch.logit_rows))

    def batch_seconds(self, batch: Batch) -> float:
        return self.estimator.seconds(_kind(batch), batch.rows, self.work(batch))

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learn from what a batch took."""
        self.estimator.observe(_kind(batch), batch.rows, self.work(batch), seconds)

    def mbu(self, batch: Batch, seconds: float) -> float:
        return self.estimator.roofline.mbu(self.work(batch), seconds)

    @property
    def median_error(self) -> float:
        """Of predicted over measured step times, recently."""
        steps = self.estimator.corrections.get(STEP)
        return steps.median_error if steps else 0.0


def _kind(batch: Batch) -> str:
    return RIDE if batch.segments[-1].kind == "train" else STEP
