"""Background work: what the engine does in the slack, knowing only what it would cost and how to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coserve.engine.batch import Ride
from coserve.roofline import Work


@dataclass(frozen=True)
class Slice:
    """A preemptible unit of work. `kind` and `rows` tell the estimator what to compare it with."""

    kind: str
    rows: int
    work: Work
    run: Callable[[], None]


class BackgroundWork(Protocol):
    """Work that waits for slack. All calls come from the engine's thread.

    An exception that leaves `run` or `ride` ends the work; the engine hands it to `failed` and goes on serving.
    """

    @property
    def finished(self) -> bool: ...

    @property
    def begun(self) -> bool:
        """Whether it has taken memory for what it does."""

    def ride(self, max_rows: int) -> Ride | None:
        """At most `max_rows` tokens that could go along in the next batch now; None if there are none."""

    def next_slice(self, seconds: float) -> Slice | None:
        """The largest next slice that should fit into `seconds`, or the smallest; None if there is none now."""

    def give_way(self) -> bool:
        """A step found no memory: free what can be computed again. False if there is nothing of that kind."""

    def failed(self, error: Exception) -> None: ...
