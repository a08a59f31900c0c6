"""How long a step will take: the model's counts of bytes and FLOPs, through the estimator that learns from steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coserve.engine.load import Load
from coserve.engine.segment import Segment
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
        return self.load_seconds(Load.of(segments), extra_rows)

    def load_seconds(self, load: Load, extra_rows: int = 0) -> float:
        rows = load.rows + extra_rows
        work = self.cost.forward(rows, load.pairs, load.context, load.sampled)
        return self.estimator.seconds(self._known(extra_rows > 0), rows, work)

    def decoding_seconds(self, requests: int, context: int, rows: int) -> float:
        """A pass over `rows` rows, in which so many requests decode with `context` cached tokens together."""
        return self.estimator.seconds(STEP, rows, self.cost.forward(rows, context, context, requests))

    def work(self, load: Load) -> Work:
        return self.cost.forward(load.rows, load.pairs, load.context, load.sampled)

    def step_seconds(self, load: Load, *, riding: bool = False) -> float:
        """A pass with exactly this load; `riding`: there are train tokens in it."""
        return self.estimator.seconds(self._known(riding), load.rows, self.work(load))

    def observe(self, load: Load, seconds: float, *, riding: bool = False) -> None:
        """Learn from what a pass took."""
        self.estimator.observe(_kind(riding), load.rows, self.work(load), seconds)

    def mbu(self, load: Load, seconds: float) -> float:
        return self.estimator.roofline.mbu(self.work(load), seconds)

    def _known(self, riding: bool) -> str:
        """The kind of pass to predict by: any, until one with train tokens was seen."""
        return RIDE if riding and self.estimator.corrections.get(RIDE) else STEP

    @property
    def median_error(self) -> float:
        """Of predicted over measured step times, recently."""
        steps = self.estimator.corrections.get(STEP)
        return steps.median_error if steps else 0.0


def _kind(riding: bool) -> str:
    return RIDE if riding else STEP
