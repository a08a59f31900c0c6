"""Steps of decoding as graphs: one for each size of batch, length of context, and way of sampling that was met."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coserve.engine.gpu.adapters import AdapterSlots
from coserve.engine.gpu.card import Card
from coserve.engine.gpu.choice import NOTHING_MORE, Asked, Choice, choose
from coserve.engine.gpu.penalties import PenaltySlots
from coserve.kernels import KVCache, StackedLora
from coserve.kernels.gpu import decode
from coserve.kernels.gpu.decode import DecodeRows
from coserve.kernels.gpu.penalties import NONE
from coserve.models.decoder import Decoder, StackedAdapters

_CONTEXTS = (256, 512, 1024, 2048)  # keys; beyond, attention always uses all the programs of a row that it may
UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Kind:
    """A step that a graph is captured for, and whatever is smaller."""

    rows: int
    context: int  # keys of the longest row
    asked: Asked = NOTHING_MORE
    adapted: bool = False  # whether any row has an adapter


@dataclass(frozen=True)
class Left:
    """What a step leaves on the GPU until the next one: logits [rows, vocab], and what it chose.

    Of one memory for all steps: a graph's own would live as long as the graph, and there are hundreds.
    """

    logits: Tensor
    choice: Choice


class DecodeGraphs:
    """Captured when first needed, which takes about as long as three steps."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        card: Card,
        rows: DecodeRows,
        adapters: AdapterSlots,
        penalties: PenaltySlots,
    ):
        self._decoder, self._cache, self._rows = decoder, cache, rows
        self._adapters, self._penalties = adapters, penalties
        # Of those with adapters and of those without: the former are forgotten, and their memory with them.
        self._pools = {adapted: card.pool() for adapted in (False, True)}
        self._captured: dict[Kind, Callable[[], Left]] = {}
        self._prepared = {NOTHING_MORE}
        most, vocab = rows.tables.shape[0], decoder.config.vocab_size
        zeros = functools.partial(torch.zeros, device=card.device)
        self._left = Left(zeros(most, vocab, dtype=decoder.dtype), Choice.room(most, vocab, zeros))
        self.sizes = batch_sizes(most)

    def kind(self, rows: int, context: int, asked: Asked, *, adapted: bool) -> Kind:
        """The smallest kind of step in which so many rows find room."""
        return Kind(at_least(self.sizes, rows), at_least((*_CONTEXTS, UNLIMITED), context), asked, adapted)

    def capture(self, kind: Kind) -> bool:
        """Have a graph for such a step; whether that took a capture."""
        if kind in self._captured:
            return False
        self._captured[kind] = self._pools[kind.adapted].capture(lambda: self._step(kind))
        return True

    def run(self, kind: Kind) -> Left:
        """Launch a step over the rows as they stand, whose graph was captured."""
        return self._captured[kind]()

    def warm_up(self) -> None:
        """Run every size of batch once, as kernels must be compiled before they are captured."""
        self._rows.rest()
        for rows in self.sizes:
            for filtered in (False, True):
                self._step(Kind(rows, UNLIMITED, Asked(filtered=filtered)))

    def prepare(self, asked: Asked) -> None:
        """Where penalties or logprobs are first asked for: choose once so in every size of batch, for nobody.

        Few servers ever need them, and a start would take longer. The kernels of a part of it are compiled with it.
        """
        asked = replace(asked, filtered=False)
        if asked in self._prepared:
            return
        self._rows.penalties.fill_(NONE)
        for rows in self.sizes:
            for filtered in (False, True):
                self._choose(Kind(rows, UNLIMITED, replace(asked, filtered=filtered)))
        self._prepared.add(asked)

    def forget(self) -> None:
        """The tensors that the graphs use are about to move."""
        self._captured.clear()

    def forget_adapted(self) -> None:
        """The adapters have moved. All rows become idle, and nobody may have one."""
        self._captured = {kind: graph for kind, graph in self._captured.items() if not kind.adapted}
        self._rows.rest()
        for size in one_of_each_tile(self.sizes):  # other ranks are other kernels, and so is gate and up's product
            self._step(Kind(size, UNLIMITED, adapted=True))

    @torch.inference_mode()
    def _step(self, kind: Kind) -> Left:
        rows, count = self._rows, kind.rows
        decode.begin(rows, count)
        layout, adapters = rows.layout(count, kind.context), self._stacked(count) if kind.adapted else ()
        hidden = self._decoder.forward(rows.token_ids[:count], layout, self._cache, adapters)
        logits = self._left.logits[:count]
        logits.copy_(self._decoder.logits(hidden))
        choice = self._choose(kind)
        decode.end(rows, choice.tokens)
        return Left(logits, choice)

    @torch.inference_mode()
    def _choose(self, kind: Kind) -> Choice:
        rows, count = self._rows, kind.rows
        by_row = (
            rows.floats(decode.TEMPERATURE, count),
            rows.inputs[decode.TOP_K, :count],
            rows.floats(decode.TOP_P, count),
            rows.floats(decode.MIN_P, count),
            rows.floats(decode.UNIFORM, count),
        )
        slots = rows.penalties[:count]
        return self._left.choice.keep(
            choose(self._left.logits[:count], by_row, kind.asked, self._penalties.table, slots)
        )

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


def at_least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of these in which so many find room."""
    return sizes[bisect.bisect_left(sizes, wanted)]
