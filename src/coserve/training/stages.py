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
    or twice, four times ... as many, at most `most`. `finer(first)`: the stages that item `first` consists of, for
    where there is not the time for a whole item.
    """

    kind: str
    items: int
    run: Callable[[int, int], None]
    work: Callable[[int, int], Work]
    rows: Callable[[int, int], int] = lambda first, last: last - first
    step: int = 1
    most: int = 1 << 30
    finer: Callable[[int], Iterable[Stage]] | None = None


class Stages:
    """Works off stages one after the other, cutting each piece to the time there is."""

    def __init__(self, stages: Iterable[Stage], estimator: Estimator):
        self._stages: Iterator[Stage] = iter(stages)
        self._estimator = estimator
        self._stage: Stage | None = None
        self._done = 0
        self._finer: Stages | None = None  # what is left of an item that was begun in finer stages

    def next_slice(self, seconds: float, *, whole: bool = False) -> Slice | None:
        """The largest next piece that should fit into `seconds`, or the smallest; None when all is done.

        `whole`: the smallest is a whole item, though there are finer stages.
        """
        if self._finer is not None:
            piece = self._finer.next_slice(seconds)
            if piece is not None:
                return piece
            self._finer = None
        while self._stage is None or self._done >= self._stage.items:
            self._stage, self._done = next(self._stages, None), 0
            if self._stage is None:
                return None
        stage, first = self._stage, self._done
        if stage.finer is not None and not whole and self._seconds(stage, first, first + 1) > seconds:
            return self._first_of(Stages(stage.finer(first), self._estimator), seconds)
        last = self._cut(stage, first, seconds)

        def run() -> None:
            stage.run(first, last)
            self._done = last

        return Slice(stage.kind, stage.rows(first, last), stage.work(first, last), run)

    def _first_of(self, finer: Stages, seconds: float) -> Slice:
        """The next item's first piece in finer stages; they are taken only when it runs."""
        piece = finer.next_slice(seconds)
        if piece is None:
            raise RuntimeError("there is nothing in the finer stages of an item")

        def run() -> None:
            self._finer, self._done = finer, self._done + 1
            piece.run()

        return Slice(piece.kind, piece.rows, piece.work, run)

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
