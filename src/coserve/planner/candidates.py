"""What a planner tries on a chip: number formats of the weights, and layouts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from coserve.chips import ChipSpec
from coserve.planner.layout import Layout, powers_of_two
from coserve.planner.replica import USABLE, Replica
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
    fewest = max(1, math.ceil(total / (chip.capacity * USABLE)))
    if chip.kind == "dataflow":
        wanted = sorted({math.ceil(fewest * times) for times in ROOM_FOR_CACHE})
        yield from (Layout(pp=n) for n in wanted if n <= chip.group)
        return
    widest = min(chip.group, MOST_TENSOR_PARALLEL)
    widths = sorted({*powers_of_two(widest), widest})  # servers with 12 chips use all of them
    fitting = [n for n in widths if n >= fewest]
    for n in fitting:
        yield Layout(tp=n)
        if shape.experts and n > shape.kv_chips(n) and Replica(shape, chip, Layout(dp=n), weights).room > 0:
            yield Layout(dp=n)
    if not fitting:
        stages = math.ceil(fewest / widest)
        if stages <= shape.layers:
            yield Layout(tp=widest, pp=stages)
