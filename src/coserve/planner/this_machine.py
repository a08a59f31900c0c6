"""This machine as a chip of the catalogue: measured, not read in a sheet."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

from coserve.chips.spec import ChipSpec, Figure, MemoryLevel
from coserve.planner.formats import number_format
from coserve.roofline import Chip

NAME = "this machine"
WATTS_PER_CORE = 4.0
"""Estimated: servers' processors take some 3 to 5 W a core under load; nothing here can measure it."""


def this_machine(weights: str = "bfloat16", cache: Path | None = None) -> ChipSpec:
    """Measure bandwidth and matrix products in a second or two (or read them from `cache`, where the engine keeps
    them), for weights of that format as the engine computes with them. Needs torch."""
    import torch

    from coserve.kernels.calibration import load_or_measure_chip, measure_few_rows
    from coserve.kernels.memory import available_memory
    from coserve.models.dtype import computing_dtype

    stored = torch.float32 if number_format(weights) == "float32" else torch.bfloat16
    computed = torch.float32 if stored == torch.float32 else computing_dtype()
    chip, few_rows = load_or_measure_chip(cache, computed, stored), measure_few_rows(computed, stored)
    return from_measured(chip, few_rows, available_memory(), os.cpu_count() or 1)


def from_measured(chip: Chip, few_rows: tuple[float, float], memory: float, cores: int) -> ChipSpec:
    """The measured chip in the catalogue's terms: peaks are what was reached. `few_rows`: as `measure_few_rows`."""
    today = date.today().isoformat()
    source = f"measured here ({chip.name})"
    bandwidth = chip.bandwidth * chip.efficiency
    figures = {
        "memory.DRAM.capacity": Figure(memory, "free memory, as the system says", today, "measured"),
        "memory.DRAM.bandwidth": Figure(bandwidth, f"{source}: read by matrix products", today, "measured"),
        "flops.bfloat16": Figure(chip.flops, f"{source}: the weights' format, {chip.format}", today, "measured"),
        "power": Figure(WATTS_PER_CORE * cores, "4 W a core", today, "estimated"),
    }
    return ChipSpec(
        name=NAME,
        vendor="",
        kind="cpu",
        memory=(MemoryLevel("DRAM", memory, bandwidth),),
        flops={"bfloat16": chip.flops, "float32": chip.flops},
        matmul={"bfloat16": chip.flops, "float32": chip.flops},
        link_bandwidth=0.0,
        link_latency=0.0,
        group=1,
        power=WATTS_PER_CORE * cores,
        price_per_hour=None,
        figures=figures,
        few_rows=few_rows[0],
        overlap=few_rows[1],
    )
