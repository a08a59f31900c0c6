"""The catalogue of chips: what each can hold, move and compute, what it costs, and where every figure was read.

One TOML file per vendor. Nothing here knows models, engines or plans.
"""

from coserve.chips.catalogue import catalogue, find_chip
from coserve.chips.spec import ChipSpec, Figure, MemoryLevel

__all__ = ["ChipSpec", "Figure", "MemoryLevel", "catalogue", "find_chip"]
