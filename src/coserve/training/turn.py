"""A job's place in the engine's queue of background work."""

from __future__ import annotations

import threading
from collections.abc import Callable

from coserve.engine import Ride, Slice
from coserve.training.trainer import Trainer


class Turn:
    """Its trainer is made when its turn has come, on a thread of its own: jobs that wait take no memory, and nobody is
    kept from being served meanwhile.

    `make` returns None where the job has ended. `fail` is told why there will be no trainer, or the engine's reason to
    end one that is being made; from another thread too. `call` runs something on the engine's thread.
    """

    def __init__(
        self,
        make: Callable[[], Trainer | None],
        *,
        fail: Callable[[Exception], None],
        call: Callable[[Callable[[], None]], None],
    ):
        self._make, self._fail, self._call = make, fail, call
        self._lock = threading.Lock()
        self._over = self._paused = False
        self.begun = False
        self.trainer: Trainer | None = None

    def pause(self, paused: bool) -> None:
        """Train no further, or go on; those behind wait all the same."""
        with self._lock:
            self._paused = paused
            if self.trainer is not None:
                self.trainer.paused = paused
        self._call(lambda: None)  # an idle engine looks for work again

    def cancel(self) -> None:
        """End it between two slices."""
        self._call(self._close)

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
        trainer = self._end()
        if trainer is not None:
            trainer.failed(error)
        else:
            self._fail(error)

    def _come(self) -> Trainer | None:
        """The trainer, if it has been made; the first time, it begins to be."""
        if not (self.begun or self._paused):
            self.begun = True
            threading.Thread(target=self._begin, name="coserve-turn", daemon=True).start()
        return self.trainer

    def _begin(self) -> None:
        try:
            trainer = self._make()
        except Exception as error:
            self._end()
            self._fail(error)
        else:
            with self._lock:
                if trainer is None:
                    self._over = True
                elif self._over:
                    trainer.close()
                else:
                    trainer.paused, self.trainer = self._paused, trainer
        self._call(lambda: None)

    def _close(self) -> None:
        trainer = self._end()
        if trainer is not None:
            trainer.close()

    def _end(self) -> Trainer | None:
        """The trainer that there was; there will be none any more."""
        with self._lock:
            trainer, self.trainer, self._over = self.trainer, None, True
            return trainer
