"""How one copy of a model (a replica) lies on chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A replica takes `tp * dp * pp` chips. Routed experts are spread over all chips of a stage, whole or in parts."""

    tp: int = 1  # tensor parallel: chips that share each matrix
    pp: int = 1  # pipeline parallel: stages, each with some of the layers
    dp: int = 1  # attention data parallel: groups that hold attention's weights each, and other sequences

    @property
    def stage(self) -> int:
        """Chips of a pipeline stage."""
        return self.tp * self.dp

    @property
    def chips(self) -> int:
        return self.stage * self.pp

    def __str__(self) -> str:
        return " ".join(f"{name}{n}" for name, n in (("TP", self.tp), ("DP", self.dp), ("PP", self.pp)) if n > 1) or "1"


ONE_CHIP = Layout()


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << i for i in range(most.bit_length())]
