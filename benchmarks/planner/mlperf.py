"""`mlperf_inference_v5_1.csv`: tokens a second of whole systems under MLPerf Inference's rules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks.planner.case import Case, Row
from coserve.chips import ChipSpec, find_chip
from coserve.planner.constants import Constants
from coserve.planner.layout import Layout, powers_of_two
from coserve.planner.replica import Replica
from coserve.planner.serving import Limits, Requests, best_throughput
from coserve.planner.shape import ModelShape, load_shape

OPEN_ORCA = Requests(prompt=290, output=294)
"""Mean tokens of the data set that Llama-2-70B answers, as known."""
CNN_DAILY_MAIL = Requests(prompt=870, output=128)
"""Mean tokens of the data set that Llama-3.1-8B sums up, as known."""

_REQUESTS = {"llama2-70b": OPEN_ORCA, "llama3.1-8b": CNN_DAILY_MAIL}
_LIMITS = {
    ("llama2-70b", "Server"): Limits(ttft=2.0, tpot=0.2),
    ("llama2-70b", "Interactive"): Limits(ttft=0.45, tpot=0.04),
    ("llama3.1-8b", "Server"): Limits(ttft=2.0, tpot=0.1),
    ("llama3.1-8b", "Interactive"): Limits(ttft=0.5, tpot=0.03),
}
"""MLPerf's limits at the 99th percentile; Offline has none."""
_FORMATS = {"fp8": "float8", "fp4": "float4", "mxfp4": "mxfp4", "INT8": "int8", "INT4": "int4", "UINT4": "int4"}
_DUAL_B60 = "Arc Pro B60 Dual"  # a card with two chips
_SOCKETS = 2  # of the servers without an accelerator
_CPUS = {"GNR_128C": "Xeon 6980P"}  # by a part of the system's name

_NO_CPU = "the catalogue has no Xeon with 86 cores"
_NO_FIT = "the weights do not fit the chips of a node"
_VLLM = "served by vLLM, slower here than the TensorRT-LLM that is assumed"


@dataclass(frozen=True)
class System:
    """Chips of a kind, in nodes that hold a replica or several."""

    chip: ChipSpec
    chips: int  # in all
    node: int  # chips that a replica may take


def case(row: Row) -> Case:
    shape, benchmark = load_shape(row["model"]), row["model"].removesuffix("-99")
    format, scenario = _FORMATS[row["precision"]], row["scenario"]
    systems = _systems(row)
    why = _why(row, shape, format, systems)

    def predict(constants: Constants) -> dict[str, float]:
        total = sum(throughput(shape, part, format, benchmark, scenario, constants) for part in systems)
        return {"output_tokens_per_s": total}

    return Case(
        table="mlperf_inference_v5_1",
        row=row,
        measured={"output_tokens_per_s": float(row["value"])},
        chip=" + ".join(part.chip.name for part in systems) or row["chip"] or row["system"],
        model=shape.name,
        predict=None if why in (_NO_CPU, _NO_FIT) else predict,
        why=why,
        fit=bool(systems) and systems[0].chip.kind == "cpu" and row["scenario"] == "Offline",
    )


def throughput(
    shape: ModelShape,
    system: System,
    format: str,
    benchmark: str,
    scenario: str,
    constants: Constants,
    engine: str = "tensorrt-llm",
) -> float:
    """Output tokens a second of a system in a scenario of "llama2-70b" or "llama3.1-8b"; 0 where it cannot keep the
    limits."""
    limits = _LIMITS.get((benchmark, scenario), Limits())
    return best_rate(shape, system, format, "float8", _REQUESTS[benchmark], limits, constants, engine)


def best_rate(
    shape: ModelShape,
    system: System,
    format: str,
    cache: str,
    requests: Requests,
    limits: Limits,
    constants: Constants,
    engine: str,
) -> float:
    """Output tokens a second with the tensor parallel degree that gives most; 0 where none keeps the limits."""
    best = 0.0
    for tp in powers_of_two(system.node):
        replica = Replica(shape, system.chip, Layout(tp), format, cache, engine, constants)
        serving = best_throughput(replica, requests, limits)
        if serving is not None:
            best = max(best, serving.rate * requests.output * system.chips / tp)
    return best


def fits(shape: ModelShape, system: System, format: str) -> bool:
    """Whether any degree leaves room for a cache beside the weights."""
    return any(Replica(shape, system.chip, Layout(tp), format).room > 0 for tp in powers_of_two(system.node))


def _systems(row: Row) -> list[System]:
    """The row's chips by kind; none where the catalogue does not know them."""
    if not row["chip"]:
        names = [name for part, name in _CPUS.items() if part in row["system"]]
        return [System(find_chip(name), _SOCKETS, _SOCKETS) for name in names]
    nodes, node = int(row["nodes"]), int(row["chips_per_node"])
    mixed = re.findall(r"([^,]+?) \(x(\d+)\)", row["chip"])
    if mixed:
        return [System(find_chip(name), int(chips), node) for name, chips in mixed]
    if _DUAL_B60 in row["chip"]:
        return [System(find_chip("Arc Pro B60"), 2 * nodes * node, 2 * node)]
    return [System(find_chip(row["chip"]), nodes * node, node)]


def _why(row: Row, shape: ModelShape, format: str, systems: list[System]) -> str:
    if not systems:
        return _NO_CPU
    if not all(fits(shape, part, format) for part in systems):
        return _NO_FIT
    return _VLLM if "vLLM" in row["system"] else ""
