"""Sleep: an engine that leaves its GPU's memory to another program for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from coserve.engine.offload import Offloaded, offload
from coserve.errors import ShuttingDown
from coserve.kernels import KVCache
from coserve.kernels.device import is_gpu
from coserve.models.decoder import Decoder


class Sleep:
    """On a CPU nothing is moved: there is nowhere to move to."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        self._decoder, self._cache = decoder, cache
        self._offloaded: Offloaded | None = None  # while it sleeps
        self._ended = False
        self._memory = threading.Condition()  # held by whoever takes the device's memory, or gives it back

    @property
    def asleep(self) -> bool:
        return self._offloaded is not None

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Wait until nobody sleeps; nobody falls asleep within this. Raises `ShuttingDown` if the engine ends."""
        with self._memory:
            self._memory.wait_for(lambda: self._ended or not self.asleep)
            if self._ended:
                raise ShuttingDown
            yield

    def begin(self, blocks: Sequence[int]) -> int:
        """Move the weights, and these blocks of the cache, to main memory; nothing may be on its way.

        Returns the bytes that are free. Raises `Unavailable` if main memory has no room; then nothing has changed.
        """
        with self._memory:
            if self.asleep or self._ended:
                return 0
            device = self._decoder.device
            if is_gpu(device):
                self._offloaded = offload(self._decoder.memory(), self._cache, blocks, device)
            else:
                self._offloaded = Offloaded((), device)
            return self._offloaded.device_bytes

    def wake(self) -> None:
        """Raises `Unavailable` if the GPU's memory is taken by another program; then it sleeps on."""
        with self._memory:
            if self._offloaded is not None:
                self._offloaded.restore()
                self._offloaded = None
                self._memory.notify_all()

    def end(self) -> None:
        """Whoever waits for it to be over has waited in vain: the engine ends."""
        with self._memory:
            self._ended = True
            self._memory.notify_all()
