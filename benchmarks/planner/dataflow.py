"""`dataflow_published.csv`: what makers of dataflow machines and others say of them, mostly the pace of one user."""

from __future__ import annotations

from benchmarks.planner.case import Case, Predict, Row
from benchmarks.planner.published import EARLY_GROQ, USER_CONTEXT, fewest_chips
from coserve.chips import ChipSpec, find_chip
from coserve.planner.constants import Constants
from coserve.planner.layout import Layout
from coserve.planner.replica import Replica
from coserve.planner.shape import load_shape

_FORMATS = {"WSE-3": "bfloat16", "Groq LPU": "int8", "Positron Archer": "bfloat16"}
_METRICS = {
    "output_tok_s_per_user": "tokens_per_s_per_user",
    "memory_bandwidth_utilisation_percent": "memory_bandwidth_utilisation_pct",
}
_BUSY_MODEL = "Llama 3.1 8B"
"""Whose decoding shows a share of the bandwidth; the share is the same for all."""

_RATIO = "a ratio to a DGX H200 or an H100 that ran replicas at a load that is not stated"
_CIRCULAR = "circular: the catalogue's bandwidth of this chip was derived from this figure"
_SHARE = "the fitted share of the bandwidth of all chips, not one of this maker's"


def case(row: Row) -> Case:
    chip = find_chip(row["chip"])
    metric = _METRICS.get(row["metric"], row["metric"])
    predict, why = _predict(row, chip, metric)
    return Case(
        table="dataflow_published",
        row=row,
        measured={metric: float(row["value"])},
        chip=chip.name,
        model=load_shape(row["model"]).name if row["model"] else "",
        predict=predict,
        why=why,
    )


def _predict(row: Row, chip: ChipSpec, metric: str) -> tuple[Predict | None, str]:
    if metric == "tokens_per_s_per_user":
        return _one_user(row, chip, metric), _doubt(row, chip)
    if metric == "memory_bandwidth_utilisation_pct":
        return _bandwidth_share(chip, metric), _SHARE
    return None, _RATIO


def _doubt(row: Row, chip: ChipSpec) -> str:
    if chip.name == "Positron Archer":
        return _CIRCULAR
    return EARLY_GROQ if chip.name == "Groq LPU" and row["date"].startswith("2023") else ""


def _one_user(row: Row, chip: ChipSpec, metric: str) -> Predict:
    shape, format, layout = load_shape(row["model"]), _FORMATS[chip.name], _layout(row, chip)

    def predict(constants: Constants) -> dict[str, float]:
        replica = Replica(shape, chip, layout, format, constants=constants)
        return {metric: 1 / replica.decode(1, USER_CONTEXT).total}

    return predict


def _layout(row: Row, chip: ChipSpec) -> Layout:
    """The stated number of chips, else the fewest that hold the weights; Positron's share each matrix."""
    if chip.kind != "dataflow":
        return Layout(tp=int(row["chips"]))
    if row["chips"]:
        return Layout(pp=int(row["chips"]))
    return Layout(pp=fewest_chips(load_shape(row["model"]), chip, _FORMATS[chip.name]))


def _bandwidth_share(chip: ChipSpec, metric: str) -> Predict:
    shape = load_shape(_BUSY_MODEL)

    def predict(constants: Constants) -> dict[str, float]:
        replica = Replica(shape, chip, Layout(tp=chip.group), _FORMATS[chip.name], constants=constants)
        return {metric: 100 * replica.roofline.chip.efficiency}

    return predict
