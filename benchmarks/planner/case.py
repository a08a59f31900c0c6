"""One measured run of a published table, and the predictions that stand against its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coserve.planner.constants import Constants

Row = dict[str, str]
Predict = Callable[[Constants], Mapping[str, float]]


@dataclass(frozen=True)
class Case:
    """`predict` gives the metrics of `measured`, in the same units; None where nothing can be predicted."""

    table: str  # the file's layout
    row: Row
    measured: Mapping[str, float]  # by metric: "tpot_ms", "ttft_ms", "output_tokens_per_s", ...
    chip: str  # the catalogue's name, or as the table spells it
    model: str  # likewise
    predict: Predict | None = None
    why: str = ""  # why there is no prediction, or why it may be far off
    fit: bool = False  # whether constants are fitted on it
