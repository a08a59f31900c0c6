"""Fitting the planner's constants on measured runs: by least squares of log errors, robust against rows that no
constants explain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from benchmarks.planner.case import Case
from coserve.planner.constants import Constants

START = Constants(
    memory=0.8,
    arithmetic=0.8,
    attention=0.5,
    link=0.6,
    hop=1.0,
    layer=20e-6,
    expert_layer=20e-6,
    step=1e-3,
    sequence=20e-6,
    first_token={"tensorrt-llm": 50e-3, "vllm": 50e-3, "sglang": 50e-3},
    kernel=3e-6,
    operator_memory=0.8,
    operator_arithmetic=0.8,
    training=0.8,
    training_attention=0.5,
    training_experts=0.5,
    activations=50.0,
    small_kernel=3e-6,
    load_cycles=500.0,
    ring_hop=1.0,
    cpu_matmul=0.5,
)
"""Round numbers that one would guess; a fit is drawn to them a little: what the data does not say stays as it is."""
SHARES = (
    "memory",
    "arithmetic",
    "attention",
    "link",
    "operator_memory",
    "operator_arithmetic",
    "training",
    "training_attention",
    "training_experts",
    "cpu_matmul",
)
"""These have a ceiling: products of a whole model may pass the best single one that somebody measured by a tenth."""


@dataclass(frozen=True)
class Group:
    """Constants that are fitted together, and the tables that they are fitted on."""

    tables: tuple[str, ...]
    names: tuple[str, ...]
    engines: bool = False  # `first_token`, too

    def uses(self, case: Case) -> bool:
        return case.fit and case.predict is not None and case.table in self.tables


GROUPS = {
    "serving": Group(
        ("measured_serving",),
        (
            "memory",
            "arithmetic",
            "attention",
            "link",
            "hop",
            "layer",
            "expert_layer",
            "step",
            "sequence",
        ),
        engines=True,
    ),
    "operators": Group(
        ("operator_times",), ("kernel", "operator_memory", "operator_arithmetic", "small_kernel", "load_cycles")
    ),
    "training": Group(("training_published",), ("training", "training_attention", "training_experts", "activations")),
    "ring": Group(("inference_published",), ("ring_hop",)),
    "cpu": Group(("mlperf_inference_v5_1",), ("cpu_matmul",)),
}
TOLERANCE = {"ttft_ms": 0.15}
"""Relative error that counts as usual, by metric; others 0.1."""
WEIGHT = {"ttft_ms": 0.3}
"""First tokens depend on what no constant knows (how a benchmark starts, what an engine compiles): they count less."""
PULL = 0.5
"""How strongly `START` draws, in residuals for a factor of e and a thousand rows."""


def fit(group: Group, cases: Sequence[Case], base: Constants) -> Constants:
    """`base` with the group's constants fitted on `cases`; `base` with their start values if there are none."""
    names = list(group.names)
    engines = sorted(START.first_token) if group.engines else []
    start = np.log([getattr(START, name) for name in names] + [START.first_token[e] for e in engines])

    def constants(x: np.ndarray) -> Constants:
        values = [float(v) for v in np.exp(x)]
        fitted = dict(zip(names, values, strict=False))
        if engines:
            fitted["first_token"] = dict(zip(engines, values[len(names) :], strict=True))
        return replace(base, **fitted)

    used = [case for case in cases if group.uses(case)]
    if not used:
        return constants(start)
    weight = _weights(used)

    def residuals(x: np.ndarray) -> np.ndarray:
        now = constants(x)
        found = []
        for case, w in zip(used, weight, strict=True):
            predicted = case.predict(now)  # type: ignore[misc]
            cold = bool(case.why)
            for metric, value in case.measured.items():
                if not (cold and metric == "ttft_ms"):
                    error = np.log(predicted[metric] / value) / TOLERANCE.get(metric, 0.1)
                    found.append(w * WEIGHT.get(metric, 1.0) * _robust(error))
        pull = PULL * np.sqrt(len(used) / 1000) * (x - start)
        return np.concatenate([np.array(found), pull])

    most = np.log([1.1 if name in SHARES else 50 * getattr(START, name) for name in names] + [1.0] * len(engines))
    solved = least_squares(residuals, start, bounds=(start - 7, most), diff_step=1e-3, max_nfev=40)
    return constants(solved.x)


def _robust(error: float) -> float:
    """Of a residual: what lies far out counts little more than what lies at twice the tolerance (Cauchy's loss)."""
    return float(np.sign(error) * np.sqrt(np.log1p(error**2)))


def _weights(cases: Sequence[Case]) -> list[float]:
    """Chips and models with many rows must not drown the others: the square root of their number counts."""
    number = Counter((case.chip, case.model) for case in cases)
    raw = [number[(case.chip, case.model)] ** -0.25 for case in cases]
    mean = sum(raw) / len(raw)
    return [w / mean for w in raw]
