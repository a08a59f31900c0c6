"""A segment: what a batch is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from coserve.kernels import LoraLayer

UNKNOWN = (-1,)  # the token of a decode segment that another step is about to choose, where only the GPU knows it


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence in a batch."""

    kind: Literal["decode", "prefill", "train"]
    tokens: Sequence[int]
    start: int  # position of the first token in its sequence
    blocks: Sequence[int]  # the sequence's blocks in the KV cache
    adapter: Sequence[LoraLayer] | None = None  # its layers; None = the base model
    sample: bool = False  # whether the last token's logits are wanted
