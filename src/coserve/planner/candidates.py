"""What a planner tries on a chip: number formats of the weights, and layouts."""

from __future__ import annotations

from collections.abc import Iterator

from coserve.chips import ChipSpec
from coserve.planner.layout import Layout
from coserve.planner.replica import USABLE
from coserve.planner.shape import ModelShape

MOST_TENSOR_PARALLEL = 64
"""Chips that share a matrix at most; the largest in use (GB200 NVL72)."""
ROOM_FOR_CACHE = (1.0, 1.5, 2.0, 3.0)
"""How many times the fewest chips are tried on machines that hold all in SRAM: the rest is cache."""


def weight_formats(shape: ModelShape, chip: ChipSpec) -> tuple[str, ...]:
    """16 bits, and 8 where the chip computes in them: what providers serve. Checkpoints that were published with 4-bit
    experts stay as they are."""
    if shape.experts_only:
        return ("mxfp4",)
    eight = next((name for name in ("float8", "int8") if name in chip.flops), None)
    return ("bfloat16", eight) if eight else ("bfloat16",)


def layouts(shape: ModelShape, chip: ChipSpec, weights: str) -> Iterator[Layout]:
    """Layouts whose weights fit, smallest first; none if no number of chips is enough."""
    total = shape.weight_bytes(weights)
    fewest = max(1, _ceil(total / (chip.capacity * USABLE)))
    if chip.kind == "dataflow":
        wanted = sorted({_ceil(fewest * times) for times in ROOM_FOR_CACHE})
        yield from (Layout(pp=n) for n in wanted if n <= chip.group)
        return
    widest = min(chip.group, MOST_TENSOR_PARALLEL)
    fitting = [n for n in _powers_of_two(widest) if n >= fewest]
    for n in fitting:
        yield Layout(tp=n)
        if shape.experts and n > shape.kv_chips(n) and _fits(shape, chip, Layout(dp=n), weights):
            yield Layout(dp=n)
    if not fitting:
        stages = _ceil(fewest / _powers_of_two(widest)[-1])
        if stages <= shape.layers:
            yield Layout(tp=_powers_of_two(widest)[-1], pp=stages)


def _fits(shape: ModelShape, chip: ChipSpec, layout: Layout, weights: str) -> bool:
    needed = shape.weight_bytes(weights) + (layout.dp - 1) * shape.dense_bytes(weights)
    return needed < layout.chips * chip.capacity * USABLE


def _powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself: servers with 12 chips use all of them."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i <= most]
    return powers if powers[-1] == most else [*powers, most]


def _ceil(value: float) -> int:
    return -int(-value // 1)
