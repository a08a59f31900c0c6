"""`training_published.csv`: the pace of published training runs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.planner.case import Case, Predict, Row
from coserve.chips import ChipSpec, find_chip
from coserve.errors import InvalidRequest
from coserve.planner.constants import Constants
from coserve.planner.layout import Layout
from coserve.planner.shape import ModelShape, load_shape
from coserve.planner.training import WHOLE_RUN, Run, training_speed


def _mpt(name: str, hidden: int, layers: int, heads: int, vocab: int) -> ModelShape:
    """A GPT with fourfold MLP and tied embeddings; biases and positions, which hardly count, are left out."""
    config = {"model_type": "mpt", "d_model": hidden, "n_layers": layers, "n_heads": heads, "vocab_size": vocab}
    return ModelShape.from_config(name, config)


_SHAPES = {
    "MPT-1b": _mpt("MPT-1b", 2048, 24, 16, 50368),
    "MPT-3b": _mpt("MPT-3b", 2560, 32, 20, 50368),
    "MPT-13b": _mpt("MPT-13b", 5120, 40, 40, 50368),
    "GPT 22B": _mpt("GPT 22B", 6144, 48, 64, 51200),
    "GPT-3 175B": _mpt("GPT-3 175B", 12288, 96, 96, 51200),
}
_PAPER_LAYOUTS = {"GPT 22B": Layout(tp=8)}  # Korthikanti et al., 2022, table 3
_FORMATS = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "float8", "mxfp8": "float8", "nvfp4": "float4"}
_TOKENS_TRAINED = 15e12
"""Of a Llama 3.1 model, where only its GPU-hours are known."""
_MICROBATCH_TOKENS = 16384
"""That a chip works on at once at most, where the row gives no microbatch."""
_CORES = 2  # of a Trainium1, which Neuron's degrees count
_LARGE = 20e9  # parameters above which a run without a stated layout is taken to be tensor parallel

_NO_CHIP = "the chip is not stated or not in the catalogue"
_NO_SHAPE = "the model's shape is not published in a form that the planner reads"
_NO_LENGTH = "the length of the sequences is not stated"
_TIME_TO_TRAIN = "time to a quality target: how many tokens that took is not stated"
_NO_LAYOUT = "the layout is not stated: tensor parallel over eight chips is assumed for large models"
_DOUBTS = {
    "tokendrop": "experts drop the tokens beyond their capacity, which saves work",
    "w/ MTP": "a further layer predicts a second token (MTP), which is not counted",
    "FP4 mixed": "some products stay in higher precision, which ones is not stated",
    "unverified": "chips and batch are from memory of the paper",
}


def case(row: Row) -> Case:
    chip, shape = named(row)
    measured, why = _measured(row, chip, shape)
    if why or chip is None or shape is None:
        return _case(row, measured, chip, shape, None, why, False)
    layout, run, chips = run_of(row, chip, shape)
    why = _doubt(row)
    whole_run = "GPU-hours" in row["metric"]

    def predict(constants: Constants) -> dict[str, float]:
        speed = training_speed(shape, chip, run, layout, chips, constants)
        if "mfu_pct" in measured:
            return {"mfu_pct": 100 * speed.mfu * (WHOLE_RUN if whole_run else 1.0)}
        return {"tokens_per_s_per_chip": speed.tokens}

    described = "tokens_per_s_per_chip" in measured and bool(row["global_batch"] or layout.pp == 1)
    return _case(row, measured, chip, shape, predict, why, described and not why)


def run_of(row: Row, chip: ChipSpec, shape: ModelShape) -> tuple[Layout, Run, int]:
    """How the row's run lies on how many chips."""
    return _layout(row, chip, shape), _run(row), _chips(row)


def _case(
    row: Row,
    measured: Mapping[str, float],
    chip: ChipSpec | None,
    shape: ModelShape | None,
    predict: Predict | None,
    why: str,
    fit: bool,
) -> Case:
    return Case(
        table="training_published",
        row=row,
        measured=measured,
        chip=chip.name if chip else row["chip"],
        model=shape.name if shape else row["model"],
        predict=predict,
        why=why,
        fit=fit,
    )


def named(row: Row) -> tuple[ChipSpec | None, ModelShape | None]:
    """What the row's chip and model are, where they are known."""
    return _chip(row), _shape(row["model"])


def _chip(row: Row) -> ChipSpec | None:
    try:
        return find_chip(row["chip"])
    except InvalidRequest:
        return None


def _shape(model: str) -> ModelShape | None:
    """By the name without what stands in brackets or after it."""
    name = re.sub(r"\s*\(.*\)| strong scaling", "", model)
    if name in _SHAPES:
        return _SHAPES[name]
    try:
        return load_shape(name)
    except InvalidRequest:
        return None


def _measured(row: Row, chip: ChipSpec | None, shape: ModelShape | None) -> tuple[dict[str, float], str]:
    """The metric in the planner's units, and why it has no prediction."""
    metric = row["metric"]
    if metric == "time to train":
        return {"minutes_to_train": float(row["value"])}, _TIME_TO_TRAIN
    if metric == "MFU":
        return {"mfu_pct": _middle(row["value"])}, _missing(chip, shape)
    value = float(row["value"])
    if metric in ("tokens/s/GPU", "tokens/s/device"):
        return {"tokens_per_s_per_chip": value}, _missing(chip, shape)
    if metric == "tokens/s (system)":
        return {"tokens_per_s_per_chip": value / _chips(row)}, _missing(chip, shape)
    if metric == "seq/s (system)" and row["seq_len"]:
        return {"tokens_per_s_per_chip": value * float(row["seq_len"]) / _chips(row)}, _missing(chip, shape)
    if metric == "iteration time" and row["seq_len"] and row["global_batch"]:
        tokens = float(row["global_batch"]) * float(row["seq_len"])
        return {"tokens_per_s_per_chip": tokens / value / _chips(row)}, _missing(chip, shape)
    if "GPU-hours" in metric and chip and shape:
        return {"mfu_pct": _whole_mfu(row, chip, shape)}, ""
    return {metric: value}, _missing(chip, shape) or _NO_LENGTH


def _missing(chip: ChipSpec | None, shape: ModelShape | None) -> str:
    if shape is None:
        return _NO_SHAPE
    return _NO_CHIP if chip is None else ""


def _whole_mfu(row: Row, chip: ChipSpec, shape: ModelShape) -> float:
    """Per cent, from the GPU-hours of the whole run; FLOPs counted as `training_speed` does."""
    sequence = _run(row).sequence
    flops = 3 * (shape.matrix_flops(1) + shape.attention_flops(1, sequence / 2, prompt=True))
    tokens = _TOKENS_TRAINED / (float(row["value"]) * 3600)
    return 100 * tokens * flops / chip.flops[_format(row)]


def _middle(text: str) -> float:
    """Of a range ("38-43"; "41 -> 47-48"), else the number itself."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    return (numbers[0] + numbers[-1]) / 2


def _chips(row: Row) -> int:
    """The number, or the last one of a range."""
    return int(re.findall(r"\d+", row["n_chips"])[-1])


def _format(row: Row) -> str:
    word = re.split(r"[ -]", row["precision"])[0]
    return _FORMATS[word]


def _degree(row: Row, name: str) -> int | None:
    """TP4 or TP=4; None where it is not stated or "n/a"."""
    found = re.search(rf"\b{name}=?(\d+)", row["parallelism"])
    return int(found[1]) if found else None


def _layout(row: Row, chip: ChipSpec, shape: ModelShape) -> Layout:
    if shape.name in _PAPER_LAYOUTS:
        return _PAPER_LAYOUTS[shape.name]
    if not row["parallelism"]:
        large = shape.parameters() > _LARGE and chip.kind != "tpu"  # MaxText shards without it
        return Layout(tp=8 if large else 1)
    tp, pp = _degree(row, "TP") or 1, _degree(row, "PP") or 1
    if chip.name == "Trainium1":
        tp = max(1, tp // _CORES)
    return Layout(tp, pp)


def _run(row: Row) -> Run:
    sequence, chips = int(float(row["seq_len"] or 4096)), _chips(row)
    batch = int(float(row["global_batch"] or chips))
    fitting = max(1, _MICROBATCH_TOKENS // sequence)
    microbatch = min(fitting, max(1, batch // chips))
    return Run(
        method="lora" if "(LoRA)" in row["kind"] else "full",
        format=_format(row),
        sequence=sequence,
        batch=batch * (_degree(row, "CP") or 1),  # context parallel chips have a part of an example each
        microbatch=_degree(row, "MBS") or microbatch,
        recompute=_recomputes(row),
        virtual=_degree(row, "VP") or 1,
        expert_parallel=_degree(row, "EP") or 1,
        zero=_shards(row),
    )


def _recomputes(row: Row) -> bool:
    if "act-ckpt True" in row["parallelism"] or row["parallelism"] == "full recompute":
        return True
    return "70B" in row["model"] and "full activation checkpointing" in row["notes"]


def _shards(row: Row) -> bool:
    """Whether weights are spread too and fetched in every pass (FSDP, ZeRO-3), not optimizer states alone."""
    text = row["parallelism"]
    sharded = row["software"].startswith(("MaxText", "torchtitan"))
    return sharded or "FULL_SHARD" in text or bool(re.search(r"FSDP(?!0)", text))


def _doubt(row: Row) -> str:
    doubts = [why for mark, why in _DOUBTS.items() if mark in row["model"] + row["notes"]]
    if not row["parallelism"]:
        doubts.append(_NO_LAYOUT)
    if re.search(r"PP\d+ \(\d+\)", row["parallelism"]):
        doubts.append("two layouts are printed, one in brackets: the first is taken")
    return "; ".join(doubts)
