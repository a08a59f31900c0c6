"""A job's place in the engine's queue of background work."""

from __future__ import annotations

import threading
from collections.abc import Callable

from coserve.engine import Ride, Slice
from coserve.training.trainer import Trainer


class Turn:
    """Its trainer is made when its turn has come, on a thread of its own: jobs that wait take no memory, and nobody is
    kept from being served meanwhile.

    `fail` is told why there will be no trainer, or the engine's reason to end one that is being made. `wake` has the
    engine look for work again. Both are called from other threads too.
    """

    def __init__(self, make: Callable[[], Trainer], *, fail: Callable[[Exception], None], wake: Callable[[], None]):
        self._make, self._fail, self._wake = make, fail, wake
        self._lock = threading.Lock()
        self._begun = self._over = self._paused = False
        self.trainer: Trainer | None = None

    def pause(self, paused: bool) -> None:
        """Train no further, or go on; those behind wait all the same."""
        with self._lock:
            self._paused = paused
            if self.trainer is not None:
                self.trainer.paused = paused
        self._wake()  # an idle engine looks for work again

    def cancel(self) -> None:
        with self._lock:
            self._over = True
            if self.trainer is not None:
                self.trainer.cancel()

    # ---- background work, on the engine's thread --------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self._over if self.trainer is None else self.trainer.finished

    def ride(self, max_rows: int) -> Ride | None:
        trainer = self._come()
        return trainer.ride(max_rows) if trainer is not None else None

    def next_slice(self, seconds: float) -> Slice | None:
        trainer = self._come()
        return trainer.next_slice(seconds) if trainer is not None else None

    def give_way(self) -> bool:
        return self.trainer is not None and self.trainer.give_way()

    def failed(self, error: Exception) -> None:
        if self.trainer is not None:
            self.trainer.failed(error)
        else:
            self._over = True
            self._fail(error)

    def _come(self) -> Trainer | None:
        """The trainer, if it has been made; the first time, it begins to be."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._begin, name="coserve-turn", daemon=True).start()
        return self.trainer

    def _begin(self) -> None:
        try:
            trainer = self._make()
        except Exception as error:
            self._over = True
            self._fail(error)
        else:
            with self._lock:
                if self._over:
                    trainer.close()
                else:
                    trainer.paused, self.trainer = self._paused, trainer
        self._wake()
