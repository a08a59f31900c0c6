"""A stage: a run of like items (rows, attention units, layers) that can be worked off in pieces of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from coserve.engine import Slice
from coserve.roofline import Estimator, Work


@dataclass(frozen=True)
class Stage:
    """`items` items, worked off in order by `run(first, last)`.

    `rows` and `work` say, for items [first, last), what the estimator compares a piece by. A piece has `step` items,
    or twice, four times ... as many, at most `most`.
    """

    kind: str
    items: int
    run: Callable[[int, int], None]
    work: Callable[[int, int], Work]
    rows: Callable[[int, int], int] = lambda first, last: last - first
    step: int = 1
    most: int = 1 << 30


class Stages:
    """Works off stages one after the other, cutting each piece to the time there is."""

    def __init__(self, stages: Iterable[Stage], estimator: Estimator):
        self._stages: Iterator[Stage] = iter(stages)
        self._estimator = estimator
        self._stage: Stage | None = None
        self._done = 0

    def next_slice(self, seconds: float) -> Slice | None:
        """The largest next piece that should fit into `seconds`, or the smallest; None when all is done."""
        while self._stage is None or self._done >= self._stage.items:
            self._stage, self._done = next(self._stages, None), 0
            if self._stage is None:
                return None
        stage, first = self._stage, self._done
        last = self._cut(stage, first, seconds)

        def run() -> None:
            stage.run(first, last)
            self._done = last

        return Slice(stage.kind, stage.rows(first, last), stage.work(first, last), run)

    def _cut(self, stage: Stage, first: int, seconds: float) -> int:
        left = min(stage.items - first, stage.most)
        if seconds == math.inf:
            return first + left
        size = stage.step
        while size < left and self._seconds(stage, first, first + min(left, 2 * size)) <= seconds:
            size *= 2
        # What would be left over is too little to be worth a piece of its own.
        return first + (left if left - size < stage.step else size)

    def _seconds(self, stage: Stage, first: int, last: int) -> float:
        return self._estimator.seconds(stage.kind, stage.rows(first, last), stage.work(first, last))
