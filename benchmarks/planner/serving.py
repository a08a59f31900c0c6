"""`measured_serving.csv`: TPOT and TTFT of engines under a steady number of users."""

from __future__ import annotations

from benchmarks.planner.case import Case, Row
from coserve.chips import find_chip
from coserve.planner.constants import Constants
from coserve.planner.layout import Layout
from coserve.planner.replica import Replica
from coserve.planner.serving import Requests, closed_loop
from coserve.planner.shape import load_shape

_CHIPS = {"h100_sxm": "H100 SXM", "h200_sxm": "H200 SXM", "b200_sxm": "B200 SXM"}
_ENGINES = {"trtllm": "tensorrt-llm"}

REQUESTS_PER_USER = 10
"""That InferenceMAX sends for each of the users, all of whom start at once."""


def case(row: Row) -> Case:
    chip, shape = find_chip(_CHIPS.get(row["system"], row["system"])), load_shape(row["model"])
    engine = _ENGINES.get(row["backend"], row["backend"])
    layout, users = replica_of(row)
    requests = Requests(float(row["isl"]), float(row["osl"]))
    cold = engine == "sglang" and not row["backend_version"] and chip.name == "B200 SXM"

    def predict(constants: Constants) -> dict[str, float]:
        replica = Replica(shape, chip, layout, weights_of(row), engine=engine, constants=constants)
        serving = closed_loop(replica, requests, users, per_user=REQUESTS_PER_USER)
        return {"tpot_ms": 1e3 * serving.tpot, "ttft_ms": 1e3 * serving.ttft}

    return Case(
        table="measured_serving",
        row=row,
        measured={"tpot_ms": float(row["tpot_ms"]), "ttft_ms": float(row["ttft_ms"])},
        chip=chip.name,
        model=shape.name,
        predict=predict,
        why="TTFT: seconds for few users, less for more of them: the engine was cold" if cold else "",
        fit=True,
    )


def replica_of(row: Row) -> tuple[Layout, float]:
    """The layout and the users of a replica. Where `attention_dp_size` is filled, users are counted for one of its
    groups; rows whose `moe_tp_size` and `moe_ep_size` are equal and above 1 give the degree as its square."""

    def number(name: str) -> int:
        return int(float(row[name] or 1))

    tp, pp, dp = number("tp_size"), number("pp_size"), number("attention_dp_size")
    users = float(row["concurrency_or_batch"])
    moe_tp, moe_ep = number("moe_tp_size"), number("moe_ep_size")
    if not row["attention_dp_size"]:
        return Layout(tp, pp, dp), users
    users *= dp
    if moe_tp == moe_ep > 1 and moe_tp * moe_ep == max(tp, dp):
        tp, dp = (tp, moe_tp) if dp > 1 else (moe_tp, dp)
    return Layout(tp, pp, dp), users


def weights_of(row: Row) -> str:
    if "gpt-oss" in row["model"]:
        return "mxfp4"  # its only published weights, whatever the row calls the products
    return row["gemm_quant_mode"] or "bfloat16"
