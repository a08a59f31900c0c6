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
class Predictor:
    """Seconds of forward passes of one model on one chip."""

    cost: ModelCost
    estimator: Estimator

    def seconds(self, segments: Sequence[Segment], extra_rows: int = 0) -> float:
        """A pass over these segments and `extra_rows` train tokens."""
        kind = RIDE if extra_rows and RIDE in self.estimator.corrections else STEP
        rows = sum(len(s.tokens) for s in segments) + extra_rows
        context = sum(s.start + len(s.tokens) for s in segments)
        pairs = sum(len(s.tokens) * (s.start + len(s.tokens)) for s in segments)
        work = self.cost.forward(rows, pairs, context, sum(s.sample for s in segments))
        return self.estimator.seconds(kind, rows, work)

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
