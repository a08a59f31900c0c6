"""What other predictors are asked: a published row in the words of each peer's own interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.planner import serving, training
from benchmarks.planner.case import Case, Row
from coserve.chips import ChipSpec, find_chip
from coserve.planner.layout import Layout
from coserve.planner.shape import ModelShape, load_shape

Job = dict[str, Any]


class CannotSay(Exception):
    """The peer's interface has no words for this row; the message says for what."""


@dataclass(frozen=True)
class Peer:
    """`jobs` makes of a case what the worker asks the peer, by the case's table. Raises `CannotSay`."""

    name: str  # in the table
    package: str  # in the package index
    release: str
    jobs: Mapping[str, Callable[[Case], Job]]


# --- AIConfigurator ---------------------------------------------------------------------------

_CACHED = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
}
"""Names under which AIConfigurator ships the same configuration, so that it needs no network."""


def aiconfigurator_job(case: Case) -> Job:
    """Its estimate of continuous batching (`agg`) with the row's users as the batch; its first token waits for other
    prompts by a factor of its own. Times of operators that nobody measured are filled in by its formulas (`HYBRID`);
    formats that the row does not state, it infers itself."""
    row = case.row
    layout, users = serving.replica_of(row)
    job: Job = {
        "model_path": _CACHED.get(row["model"], row["model"]),
        "system_name": row["system"],
        "backend_name": row["backend"],
        "database_mode": "HYBRID",
        "isl": int(float(row["isl"])),
        "osl": int(float(row["osl"])),
        "batch_size": max(1, round(users / layout.dp)),  # of one attention-data-parallel group
        "tp_size": layout.tp,
        "pp_size": layout.pp,
        "attention_dp_size": layout.dp,
    }
    routed = load_shape(case.model).experts > 0
    if routed:
        job["moe_tp_size"], job["moe_ep_size"] = _expert_degrees(row, layout)
    if row["gemm_quant_mode"] and "gpt-oss" not in row["model"]:  # its weights are MXFP4, whatever the row says
        job["gemm_quant_mode"] = row["gemm_quant_mode"]
        if routed:
            job["moe_quant_mode"] = row["moe_quant_mode"]
        elif row["gemm_quant_mode"] == "fp8":
            job["kvcache_quant_mode"] = "fp8"  # as it infers itself for models that are published in 8 bits
    return job


def _expert_degrees(row: Row, layout: Layout) -> tuple[int, int]:
    """As stated where they make up the stage; else its chips hold whole experts."""
    tp, ep = int(float(row["moe_tp_size"] or 1)), int(float(row["moe_ep_size"] or 1))
    return (tp, ep) if tp * ep == layout.stage else (1, layout.stage)


# --- llm-analysis -----------------------------------------------------------------------------

_BITS = {"bfloat16": (16, 16), "fp8": (8, 8), "fp8_block": (8, 8), "nvfp4": (4, 4), "mxfp4": (4, 16)}
"""Of weights and of activations."""
_MESSAGE = 8e-6  # seconds, in its own configurations of all GPUs with NVLink
_LONG = 1 << 24  # tokens: no row is to be refused for its length
AS_SHIPPED: Job = {}
ITS_ADVICE: Job = {"hbm_memory_efficiency": 0.65, "flops_efficiency": 0.5}
"""It ships with shares of 1; its remarks name 0.6 to 0.7 of the bandwidth, and half of the FLOP/s in training."""


def llm_analysis_serving(case: Case, efficiency: Job) -> Job:
    """Decoding with the users as a batch; its first token is that of one prompt alone, since it knows no waiting."""
    row = case.row
    layout, users = serving.replica_of(row)
    if layout.dp > 1:
        raise CannotSay("attention data parallelism")
    weights, activations = _BITS[serving.weights_of(row)]
    return {
        **_description(load_shape(case.model), find_chip(case.chip), weights, activations, efficiency),
        "parallelism": {"tp_size": layout.tp, "pp_size": layout.pp},
        "inference": {
            "batch_size_per_gpu": max(1, round(users)),
            "seq_len": int(float(row["isl"])),
            "num_tokens_to_generate": int(float(row["osl"])),
            "kv_cache_dtype_bytes": 2,
        },
    }


def llm_analysis_training(case: Case, efficiency: Job) -> Job:
    """FLOPs over the stated peak times that share: it has no other word on the pace of training."""
    chip, shape = training.named(case.row)
    if case.predict is None or chip is None or shape is None:
        raise CannotSay("what this planner cannot describe either")
    layout, run, chips = training.run_of(case.row, chip, shape)
    if run.method != "full":
        raise CannotSay("adapters")
    bits = {"bfloat16": 16, "float8": 8, "float4": 4}[run.format]
    replicas = max(1, chips // layout.chips)
    steps = max(1, round(run.batch / (replicas * run.microbatch)))
    return {
        **_description(shape, chip, bits, bits, efficiency),
        "parallelism": {"tp_size": layout.tp, "pp_size": layout.pp, "dp_size": replicas},
        "training": {
            "batch_size_per_gpu": run.microbatch,
            "gradient_accumulation_steps": steps,
            "global_batch_size": steps * replicas * run.microbatch,
            "seq_len": run.sequence,
            "activation_recomputation": 2 if run.recompute else 0,
        },
    }


def _description(shape: ModelShape, chip: ChipSpec, weights: int, activations: int, efficiency: Job) -> Job:
    return {
        "model": _model(shape),
        "gpu": _gpu(chip),
        "dtype": {"weight_bits": weights, "activation_bits": activations},
        "efficiency": efficiency,
    }


def _model(shape: ModelShape) -> Job:
    """It counts two matrices of a feed-forward block: a width that gives all elements of the model's own ones.
    Attention is as wide as the model, whatever its heads say."""
    attention = shape.stack[-1].attention
    if attention.prompt_pair is not None:
        raise CannotSay("latent attention")
    part = shape.stack[-1].feed_forward
    width = (part.expert or part.dense) / (2 * shape.hidden)
    return {
        "name": shape.name,
        "num_layers": shape.layers,
        "n_head": shape.heads,
        "hidden_dim": shape.hidden,
        "vocab_size": shape.vocab,
        "max_seq_len": _LONG,
        "num_key_value_heads": shape.kv_heads,
        "ffn_embed_dim": round(width),
        "expansion_ratio": width / shape.hidden,
        "moe_num_experts": max(1, part.experts),
        "moe_top_k": max(1, part.chosen),
    }


def _gpu(chip: ChipSpec) -> Job:
    """The catalogue's figures: its own list ends with the H100."""

    def tera(format: str) -> float | None:
        return chip.flops[format] / 1e12 if format in chip.flops else None

    return {
        "name": chip.name,
        "mem_per_GPU_in_GB": chip.capacity / 1e9,
        "hbm_bandwidth_in_GB_per_sec": chip.bandwidth / 1e9,
        "intra_node_bandwidth_in_GB_per_sec": chip.link_bandwidth / 1e9,
        "intra_node_min_message_latency": _MESSAGE,
        "peak_fp16_TFLOPS": tera("bfloat16"),
        "peak_i8_TFLOPS": tera("float8"),
        "peak_i4_TFLOPS": tera("float4"),
    }


def _llm_analysis(name: str, efficiency: Job) -> Peer:
    return Peer(
        name,
        "llm-analysis",
        "0.2.2",
        {
            "measured_serving": lambda case: llm_analysis_serving(case, efficiency),
            "training_published": lambda case: llm_analysis_training(case, efficiency),
        },
    )


PEERS = (
    Peer("AIConfigurator", "aiconfigurator", "0.12.0", {"measured_serving": aiconfigurator_job}),
    _llm_analysis("llm-analysis", AS_SHIPPED),
    _llm_analysis("llm-analysis, its advice", ITS_ADVICE),
)
