"""A micro-batch: some sequences one after the other, trained in one forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.engine import Segment
from coserve.engine.blocks import blocks_for
from coserve.kernels import BLOCK_SIZE, LoraLayer
from coserve.training.data import TrainSequence

IGNORED = -100  # the label of a token that is not learnt, as in PyTorch's cross entropy


@dataclass(frozen=True)
class MicroBatch:
    """tokens, labels: int64 [rows]; labels[i] is the token that follows tokens[i], or -100.

    `starts` [sequences + 1]: the row at which each sequence starts, and the end. `blocks`: each sequence's KV blocks.
    All on the CPU: who computes with them moves them.
    """

    tokens: Tensor
    labels: Tensor
    starts: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        return self.starts[-1]

    @classmethod
    def of(cls, sequences: Sequence[TrainSequence], blocks: Sequence[int] | None) -> MicroBatch:
        """Lay sequences out over the KV blocks at hand (None: it will need no KV cache). Nothing of one is seen by
        another."""
        tokens: list[int] = []
        labels: list[int] = []
        starts, tables, taken = [0], [], 0
        at_hand = () if blocks is None else blocks
        for s in sequences:
            tokens += s.tokens
            labels += [t if ok else IGNORED for t, ok in zip(s.tokens[1:], s.learn[1:], strict=True)]
            labels.append(IGNORED)
            starts.append(len(tokens))
            need = blocks_for(len(s.tokens))
            tables.append(tuple(at_hand[taken : taken + need]))
            taken += need
        if blocks is not None and taken > len(blocks):
            raise ValueError(f"a micro-batch of {taken} KV blocks does not fit into {len(blocks)}")
        return cls(torch.tensor(tokens), torch.tensor(labels), tuple(starts), tuple(tables))

    def lengths(self) -> list[int]:
        return [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]

    def segments(self, first: int, last: int, adapter: Sequence[LoraLayer] | None) -> list[Segment]:
        """Rows [first, last) as train segments, one for each sequence that they touch."""
        cut = []
        for start, end, blocks in zip(self.starts, self.starts[1:], self.blocks, strict=False):
            a, b = max(first, start), min(last, end)
            if a < b:
                cut.append(Segment("train", self.tokens[a:b].tolist(), a - start, blocks, adapter))
        return cut


def group_by_tokens(sequences: Sequence[TrainSequence], limit: int) -> list[list[TrainSequence]]:
    """Sequences of one batch, shortest first, cut into micro-batches of at most `limit` tokens (or one sequence).

    A sequence counts for the whole KV blocks that it takes.
    """
    groups: list[list[TrainSequence]] = []
    room = 0
    for sequence in sorted(sequences, key=lambda s: len(s.tokens)):
        tokens = blocks_for(len(sequence.tokens)) * BLOCK_SIZE
        if not groups or tokens > room:
            groups.append([])
            room = limit
        groups[-1].append(sequence)
        room -= tokens
    return groups
