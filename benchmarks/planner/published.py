"""`inference_published.csv`: figures that makers and others published of serving, each in its own form."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from benchmarks.planner import mlperf
from benchmarks.planner.case import Case, Predict, Row
from coserve.chips import ChipSpec, find_chip
from coserve.errors import InvalidRequest
from coserve.planner.constants import Constants
from coserve.planner.layout import Layout
from coserve.planner.replica import USABLE, Replica
from coserve.planner.serving import Limits, Requests, closed_loop
from coserve.planner.shape import ModelShape, load_shape

SHARE_GPT = Requests(prompt=220, output=190)
"""Mean tokens of the data set, as known."""
SONNET = Requests(prompt=512, output=128)
"""Of the tutorials for Trainium2, as their notes say."""
EARLY_GROQ = "early software: the same machine gave three times as much half a year later"
"""Of Groq's 100 tokens/s in August 2023."""
USER_CONTEXT = 1024
"""Tokens before the one that is timed, where a source says only how fast one user is served."""

_FORMATS = {
    "q4": "int4",
    "int4": "int4",
    "fp4": "float4",
    "fp8": "float8",
    "int8": "int8",
    "f16": "bfloat16",
    "fp16": "bfloat16",
}
"""By a part of the precision, in this order; bfloat16 where nothing is said."""
_MLPERF = ("Offline", "Server", "Interactive")
_RINGS = ("Inferentia2", "Trainium1")  # whose static batches `ring_hop` is fitted on
_NODE = 8  # chips that a replica may take in larger systems
_API_CHIPS = 8  # behind an API on H100, where their number is not known

_NO_CHIP = "the hardware is not disclosed or not in the catalogue"
_NO_FIT = "the weights do not fit the chips"
_SPECULATIVE = "speculative decoding with unknown acceptance: predicted without it"
_OLD_VLLM = (
    "software, not chip: 8 x L40S gave 948 tokens/s with this vLLM and 3,718 with TensorRT-LLM in the same MLPerf v4.1"
)
_NO_COUNT = "the number of chips is not published: the fewest that hold the weights are assumed, 8 for an API on H100"
_INCONSISTENT = "the row's tokens/s do not follow from its first-token and token times"
_DOUBTS = {
    "ESC4000A": "a server for PCIe cards; the row says H100 only, taken as SXM",
    "ESC8000A": "a server for PCIe cards; the row says H100 only, taken as SXM",
    "MaxQ": "run at less than the chips' power",
    "MI355X (11 nodes)": "an excerpt: the system's name says 87 chips",
}
"""By a part of the system's name."""


@dataclass(frozen=True)
class _Setup:
    """A row as it is run."""

    row: Row
    shape: ModelShape
    chip: ChipSpec
    chips: int
    format: str
    engine: str

    @property
    def cache(self) -> str:
        """Engines keep keys and values in 8 bits where the weights have 8 or 4."""
        return "float8" if self.format in ("float8", "float4") else "bfloat16"

    @property
    def system(self) -> mlperf.System:
        return mlperf.System(self.chip, self.chips, min(_NODE, self.chips))

    def replica(self, layout: Layout, constants: Constants) -> Replica:
        return Replica(self.shape, self.chip, layout, self.format, self.cache, self.engine, constants)


def case(row: Row) -> Case:
    shape = load_shape(row["model"])
    try:
        chip = find_chip(row["chip"])
    except InvalidRequest:
        return _case(row, row["chip"], shape, None, _NO_CHIP)
    format = weight_format(row["model"], row["precision"], chip)
    setup = _Setup(row, shape, chip, chip_count(row, shape, chip, format), format, _engine(row))
    predict = _predict(setup)
    return _case(row, chip.name, shape, predict, _doubt(setup) if predict else _NO_FIT)


def _case(row: Row, chip: str, shape: ModelShape, predict: Predict | None, why: str) -> Case:
    return Case(
        table="inference_published",
        row=row,
        measured=_measured(row),
        chip=chip,
        model=shape.name,
        predict=predict,
        why=why,
        fit=row["scenario"] == "static batch" and chip in _RINGS,
    )


# --- reading ----------------------------------------------------------------------------------


def weight_format(model: str, precision: str, chip: ChipSpec) -> str:
    if "gpt-oss" in model:
        return "mxfp4"  # its only published weights
    found = [format for part, format in _FORMATS.items() if part in precision.lower()]
    if found:
        return found[0]
    return "int8" if chip.name == "Groq LPU" else "bfloat16"


def fewest_chips(shape: ModelShape, chip: ChipSpec, format: str) -> int:
    """That hold the weights."""
    return math.ceil(shape.weight_bytes(format) / (chip.capacity * USABLE))


def chip_count(row: Row, shape: ModelShape, chip: ChipSpec, format: str) -> int:
    """As stated, in the column or as a tensor parallel degree in the notes; else what is assumed."""
    if row["n_chips"].isdigit():
        return int(row["n_chips"])
    degree = re.search(r"\bTP(\d+)", row["notes"])
    if degree:
        return int(degree[1])
    if chip.kind == "dataflow":
        return fewest_chips(shape, chip, format)
    return 16 if "gpt-oss" in row["model"] else _API_CHIPS  # the tutorials' other rows are on as many as the first


def _engine(row: Row) -> str:
    trt = "TensorRT" in row["software"] or row["software"] == "see submission"
    return "tensorrt-llm" if trt else "vllm"


def _measured(row: Row) -> dict[str, float]:
    value, scenario = float(row["value"]), row["scenario"]
    if "latency" in scenario:
        return {"ttft_ms": value}
    if scenario == "prefill":
        return {"prefill_tokens_per_s": value}
    if row["unit"] == "tok/s/user":
        return {"tokens_per_s_per_user": value}
    each = int(row["n_chips"]) if row["unit"] == "tok/s/GPU" else 1
    measured = {"output_tokens_per_s": value * each}
    return measured | {name: float(row[name]) for name in ("ttft_ms", "tpot_ms") if row[name]}


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _doubt(setup: _Setup) -> str:
    row = setup.row
    doubts = [why for part, why in _DOUBTS.items() if part in row["system"]]
    if "EAGLE" in row["precision"] or row["notes"].startswith("EAGLE"):
        doubts.append(_SPECULATIVE)
    if row["software"] == "vLLM" and row["scenario"] in _MLPERF:
        doubts.append(_OLD_VLLM)
    if row["unit"] == "tok/s/user" and not row["n_chips"].isdigit():
        doubts.append(_NO_COUNT)
    if row["scenario"] == "static batch" and row["tpot_ms"] and not _consistent(row):
        doubts.append(_INCONSISTENT)
    if setup.chip.name == "Groq LPU" and "2023" in row["source"]:
        doubts.append(EARLY_GROQ)
    return "; ".join(doubts)


def _consistent(row: Row) -> bool:
    """Whether a static batch's tokens a second follow from its times, to a fifth."""
    output = int(row["output_len"])
    seconds = (float(row["ttft_ms"]) + output * float(row["tpot_ms"])) / 1e3
    return abs(int(row["batch_or_concurrency"]) * output / seconds / float(row["value"]) - 1) < 0.2


# --- predicting -------------------------------------------------------------------------------


def _predict(setup: _Setup) -> Predict | None:
    """None where the weights do not fit."""
    row, batch = setup.row, _number(setup.row["batch_or_concurrency"])
    if row["scenario"] in _MLPERF:
        return _mlperf(setup) if mlperf.fits(setup.shape, setup.system, setup.format) else None
    if "latency" in row["scenario"] or row["scenario"] == "prefill":
        return _prompt(setup)
    if row["scenario"] == "decode":
        return _one_user(setup)
    if row["scenario"] == "serving":
        return _served(setup, max(1, batch))
    if batch:
        return _static(setup, batch)
    return _full_load(setup) if mlperf.fits(setup.shape, setup.system, setup.format) else None


def _mlperf(setup: _Setup) -> Predict:
    def predict(constants: Constants) -> dict[str, float]:
        rate = mlperf.throughput(
            setup.shape, setup.system, setup.format, "llama2-70b", setup.row["scenario"], constants, setup.engine
        )
        return {"output_tokens_per_s": rate}

    return predict


def _full_load(setup: _Setup) -> Predict:
    """As many requests at once as give most tokens."""
    row = setup.row
    known = Requests(_number(row["input_len"]), _number(row["output_len"]))
    requests = SHARE_GPT if row["input_len"].startswith("ShareGPT") else known

    def predict(constants: Constants) -> dict[str, float]:
        rate = mlperf.best_rate(
            setup.shape, setup.system, setup.format, setup.cache, requests, Limits(), constants, setup.engine
        )
        return {"output_tokens_per_s": rate}

    return predict


def _static(setup: _Setup, batch: int) -> Predict:
    """All prompts, then all tokens, step by step."""
    row = setup.row
    prompt, output = int(row["input_len"]), int(row["output_len"])

    def predict(constants: Constants) -> dict[str, float]:
        replica = setup.replica(Layout(tp=setup.chips), constants)
        first = batch * replica.prompt(prompt).total
        step = replica.decode(batch, prompt + output / 2).total
        times = {"ttft_ms": 1e3 * first, "tpot_ms": 1e3 * step}
        predicted = {"output_tokens_per_s": batch * output / (first + output * step)}
        return predicted | {name: value for name, value in times.items() if row[name]}

    return predict


def _prompt(setup: _Setup) -> Predict:
    """A prompt's pass, as milliseconds or as tokens a second."""
    tokens = int(setup.row["input_len"])

    def predict(constants: Constants) -> dict[str, float]:
        seconds = setup.replica(Layout(tp=setup.chips), constants).prompt(tokens).total
        if setup.row["scenario"] == "prefill":
            return {"prefill_tokens_per_s": tokens / seconds}
        return {"ttft_ms": 1e3 * seconds}

    return predict


def _one_user(setup: _Setup) -> Predict:
    """Decoding alone: llama.cpp's from an empty context on, others' in the middle of a talk."""
    output = _number(setup.row["output_len"])
    context = output / 2 if output else USER_CONTEXT
    dataflow = setup.chip.kind == "dataflow"
    layout = Layout(pp=setup.chips) if dataflow else Layout(tp=setup.chips)
    name = "tokens_per_s_per_user" if setup.row["unit"] == "tok/s/user" else "output_tokens_per_s"

    def predict(constants: Constants) -> dict[str, float]:
        return {name: 1 / setup.replica(layout, constants).decode(1, context).total}

    return predict


def _served(setup: _Setup, users: int) -> Predict:
    """A server's pace with a few users."""

    def predict(constants: Constants) -> dict[str, float]:
        serving = closed_loop(setup.replica(Layout(tp=setup.chips), constants), SONNET, users)
        return {"output_tokens_per_s": serving.rate * SONNET.output, "tpot_ms": 1e3 * serving.tpot}

    return predict
