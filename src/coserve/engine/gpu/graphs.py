"""Steps of decoding as graphs: one for each size of batch, length of context, and way of sampling that was met."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.engine.gpu.adapters import AdapterSlots
from coserve.engine.gpu.card import Card
from coserve.kernels import KVCache, StackedLora
from coserve.kernels.gpu import decode
from coserve.kernels.gpu.decode import DecodeRows
from coserve.kernels.gpu.sampling import sample
from coserve.models.decoder import Decoder, StackedAdapters

_CONTEXTS = (256, 512, 1024, 2048)  # keys; beyond, attention always uses all the programs of a row that it may
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Kind:
    """A step that a graph is captured for, and whatever is smaller."""

    rows: int
    context: int  # keys of the longest row
    filtered: bool = False  # whether any row samples by top_k, top_p or min_p
    adapted: bool = False  # whether any row has an adapter


@dataclass(frozen=True)
class Chosen:
    """What a step leaves on the GPU until the next one: logits [rows, vocab] and tokens int64 [rows].

    Of one memory for all steps: a graph's own would live as long as the graph, and there are hundreds.
    """

    logits: Tensor
    tokens: Tensor


class DecodeGraphs:
    """Captured when first needed, which takes about as long as three steps."""

    def __init__(self, decoder: Decoder, cache: KVCache, card: Card, rows: DecodeRows, adapters: AdapterSlots):
        self._decoder, self._cache, self._rows = decoder, cache, rows
        self._adapters = adapters
        # Of those with adapters and of those without: the former are forgotten, and their memory with them.
        self._pools = {adapted: card.pool() for adapted in (False, True)}
        self._captured: dict[Kind, Callable[[], Chosen]] = {}
        most, vocab = rows.tables.shape[0], decoder.config.vocab_size
        self._left = Chosen(
            torch.zeros(most, vocab, dtype=decoder.dtype, device=card.device),
            torch.zeros(most, dtype=torch.int64, device=card.device),
        )
        self.sizes = batch_sizes(most)

    def kind(self, rows: int, context: int, *, filtered: bool, adapted: bool) -> Kind:
        """The smallest kind of step in which so many rows find room."""
        return Kind(_at_least(self.sizes, rows), _at_least((*_CONTEXTS, _UNLIMITED), context), filtered, adapted)

    def capture(self, kind: Kind) -> bool:
        """Have a graph for such a step; whether that took a capture."""
        if kind in self._captured:
            return False
        self._captured[kind] = self._pools[kind.adapted].capture(lambda: self._step(kind))
        return True

    def run(self, kind: Kind) -> Chosen:
        """Launch a step over the rows as they stand, whose graph was captured."""
        return self._captured[kind]()

    def warm_up(self) -> None:
        """Run every size of batch once, as kernels must be compiled before they are captured."""
        self._rows.rest()
        for rows in self.sizes:
            for filtered in (False, True):
                self._step(Kind(rows, _UNLIMITED, filtered=filtered))

    def forget(self) -> None:
        """The tensors that the graphs use are about to move."""
        self._captured.clear()

    def forget_adapted(self) -> None:
        """The adapters have moved. All rows become idle, and nobody may have one."""
        self._captured = {kind: graph for kind, graph in self._captured.items() if not kind.adapted}
        self._rows.rest()
        for size in one_of_each_tile(self.sizes):  # other ranks are other kernels, and so is gate and up's product
            self._step(Kind(size, _UNLIMITED, adapted=True))

    @torch.inference_mode()
    def _step(self, kind: Kind) -> Chosen:
        rows, count = self._rows, kind.rows
        decode.begin(rows, count)
        layout, adapters = rows.layout(count, kind.context), self._stacked(count) if kind.adapted else ()
        hidden = self._decoder.forward(rows.token_ids[:count], layout, self._cache, adapters)
        logits, tokens = self._left.logits[:count], self._left.tokens[:count]
        logits.copy_(self._decoder.logits(hidden))
        chosen = sample(
            logits,
            rows.floats(decode.TEMPERATURE, count),
            rows.inputs[decode.TOP_K, :count],
            rows.floats(decode.TOP_P, count),
            rows.floats(decode.MIN_P, count),
            rows.floats(decode.UNIFORM, count),
            filtered=kind.filtered,
        )
        tokens.copy_(chosen)
        decode.end(rows, tokens)
        return Chosen(logits, tokens)

    def _stacked(self, count: int) -> StackedAdapters:
        tiles = self._rows.lora_tiles[:count]
        return StackedAdapters([StackedLora(stacks, tiles) for stacks in self._adapters.stacks])


def batch_sizes(most: int) -> list[int]:
    """Sizes that graphs are captured for: steps grow with the size, so that little is computed in vain."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, most + 128, 128)]
    return [*(size for size in sizes if size < most), most]


def one_of_each_tile(sizes: Sequence[int]) -> list[int]:
    """Sizes of which each takes other kernels: products pad rows to powers of two, from 16 on."""
    return list({max(16, 1 << (size - 1).bit_length()): size for size in sizes}.values())


def _at_least(sizes: Sequence[int], wanted: int) -> int:
    return sizes[bisect.bisect_left(sizes, wanted)]
