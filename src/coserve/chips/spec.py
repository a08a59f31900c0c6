"""What is known of a chip, each number with where it was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Confidence = Literal["read", "secondary", "estimated", "measured", "given"]
Kind = Literal["gpu", "cpu", "tpu", "accelerator", "dataflow"]
Topology = Literal["switch", "ring"]


@dataclass(frozen=True)
class Figure:
    """One number and its origin. `read`: in the maker's own page; `estimated`, `measured`: `source` says how; `given`:
    by who asks."""

    value: float
    source: str
    date: str
    confidence: Confidence


@dataclass(frozen=True)
class MemoryLevel:
    """One level of a chip's memory."""

    name: str  # "SRAM", "HBM", "GDDR", "DRAM"
    capacity: float  # bytes
    bandwidth: float  # bytes/s


@dataclass(frozen=True)
class ChipSpec:
    """A chip as its maker states it: peaks, not what software reaches."""

    name: str
    vendor: str
    kind: Kind
    memory: tuple[MemoryLevel, ...]  # fastest first
    flops: Mapping[str, float]  # dense FLOP/s by number format: "bfloat16", "float8", "float4", "int8", "float32"
    link_bandwidth: float  # bytes/s to the other chips of its group, one direction; 0 = none
    link_latency: float  # seconds of a hop
    group: int  # chips that those links join at most
    power: float  # watts
    price_per_hour: float | None  # USD; `figures["price_per_hour"]` says of what kind
    figures: Mapping[str, Figure]  # by field, e.g. "memory.HBM.bandwidth", "flops.bfloat16"
    matmul: Mapping[str, float] = field(default_factory=dict)  # FLOP/s that the best product was measured to reach
    topology: Topology = "switch"  # any chip to any other in a hop, or around a ring (a torus is rings)
    crossing: float = 0.0  # seconds that a value takes across a dataflow machine, from any place to any other
    few_rows: float | None = None  # FLOP/s of products with as few rows as a decode step has, where they are others
    overlap: float = 1.0  # share of the smaller of reading and computing that hides behind the larger
    trains: bool = True  # False for chips that are made for inference alone
    aliases: tuple[str, ...] = ()  # other names that data and people use

    @property
    def capacity(self) -> float:
        """Bytes of all levels."""
        return sum(level.capacity for level in self.memory)

    @property
    def bandwidth(self) -> float:
        """Bytes/s of the level that holds the weights: the largest."""
        return max(self.memory, key=lambda level: level.capacity).bandwidth

    @property
    def bought(self) -> bool:
        """Whether the price an hour is that of buying, spread over its use, and not of renting."""
        figure = self.figures.get("price_per_hour")
        return figure is not None and "amortised" in figure.source

    def at_price(self, usd: float) -> ChipSpec:
        """The same chip, rented for that an hour."""
        given = Figure(usd, "as given", "", "given")
        return replace(self, price_per_hour=usd, figures={**self.figures, "price_per_hour": given})

    @property
    def measured(self) -> bool:
        """Whether bandwidth and FLOP/s are what was reached on the chip itself, not what its maker states."""
        return any(f.confidence == "measured" for name, f in self.figures.items() if name.endswith(".bandwidth"))
