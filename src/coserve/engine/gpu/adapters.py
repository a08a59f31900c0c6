"""The adapters that rows of a captured step may go through: one above the other in the GPU's memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coserve.kernels import LoraLayer
from coserve.kernels.gpu.lora import LoraStack
from coserve.models.decoder import Decoder, DecoderLayer

Adapter = Sequence[LoraLayer]

NONE = 0  # the slot of rows without one
_MOST = 64  # beyond, those that are not needed now make room


class AdapterSlots:
    """Which slot is whose. An adapter gets one when it is first used; then all are laid out anew.

    One that is unloaded goes when that happens next.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._adapters: list[Adapter] = []
        self._slots: dict[int, int] = {}  # by the adapter's identity
        self._leaving: set[int] = set()  # of those that have slots
        self.stacks: list[dict[str, LoraStack]] = []  # for each layer, by the name of a matrix's first module

    def slot(self, adapter: Adapter | None) -> int:
        return NONE if adapter is None else self._slots[id(adapter)]

    def hold(self, adapters: Iterable[Adapter]) -> bool:
        """Have slots for these; whether slots and memory are others than before."""
        needed = {id(adapter): adapter for adapter in adapters}
        new = [adapter for key, adapter in needed.items() if key not in self._slots]
        if not new:
            return False
        kept = [adapter for adapter in self._adapters if id(adapter) in needed or id(adapter) not in self._leaving]
        if len(kept) + len(new) > _MOST:
            kept = [adapter for adapter in kept if id(adapter) in needed]
        laid_out = [*kept, *new]
        # First, as memory may not reach: then slots, stacks and the graphs that read them are as they were.
        self.stacks = [self._stack(layer, laid_out) for layer in self._decoder.layers]
        self._adapters = laid_out
        self._slots = {id(adapter): slot for slot, adapter in enumerate(self._adapters, NONE + 1)}
        self._leaving &= self._slots.keys()
        return True

    def forget(self) -> None:
        """Nobody has a slot, and none takes memory."""
        self._adapters, self._slots, self.stacks = [], {}, []
        self._leaving.clear()

    def let_go(self, adapter: Adapter) -> None:
        """It is served to nobody new."""
        if id(adapter) in self._slots:
            self._leaving.add(id(adapter))

    def _stack(self, layer: DecoderLayer, adapters: Sequence[Adapter]) -> dict[str, LoraStack]:
        """Only of the matrices on which some adapter acts."""
        layers = [LoraLayer({}), *(adapter[layer.index] for adapter in adapters)]
        adapted = {name for lora in layers for name in lora.modules}
        dtype, device = self._decoder.dtype, self._decoder.device
        return {
            linear.parts[0][0]: LoraStack.of(layers, linear.parts, linear.weight.shape[1], dtype, device)
            for linear in layer.linears.values()
            if any(name in adapted for name, _, _ in linear.parts)
        }
