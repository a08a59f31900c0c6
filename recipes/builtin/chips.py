"""The chip catalogue that the built-in model learns: `chips.csv`, every row with its source."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Chip:
    """One chip. None: its maker publishes no figure, and the model learns to say so."""

    name: str
    vendor: str
    year: int
    memory: int  # GB
    memory_type: str
    bandwidth: float  # TB/s
    tflops: float  # dense BF16, TFLOP/s
    power: int | None  # W


@cache
def catalogue() -> tuple[Chip, ...]:
    """All chips, in the file's order."""
    with (Path(__file__).parent / "chips.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Chip(
                name=row["chip"],
                vendor=row["vendor"],
                year=int(row["year"]),
                memory=int(row["memory_gb"]),
                memory_type=row["memory_type"],
                bandwidth=float(row["bandwidth_tb_s"]),
                tflops=float(row["bf16_tflops"]),
                power=int(row["power_w"]) if row["power_w"] else None,
            )
            for row in csv.DictReader(file)
        )
