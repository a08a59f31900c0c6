"""Training: how fast chips learn, and what it takes of their memory.

A step's FLOPs are counted per token: forward, the gradient of the inputs, and that of the weights for full fine-tuning
(6 N in all; 4 N with LoRA, whose base is frozen; a forward more with activation checkpointing). What activations move
besides, what the links move and what a pipeline idles is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coserve.chips import ChipSpec
from coserve.errors import InvalidRequest
from coserve.planner.constants import FITTED, Constants
from coserve.planner.layout import Layout
from coserve.planner.replica import NETWORK_BANDWIDTH, USABLE, arithmetic_format, matmul_rate
from coserve.planner.shape import ModelShape

Method = Literal["full", "lora", "qlora"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")

WHOLE_RUN = 0.85
"""Share of a long run that goes on as its steps do: the rest is checkpoints, failures and restarts. Llama 3.1 405B
reached 33 % over the whole run and 38 to 43 % in its steps (Meta, 2024)."""
ACTIVATION_BYTES = 34
"""Bytes that a layer keeps of a token for the backward pass, a unit of hidden width, attention scores aside
(Korthikanti et al., 2022)."""


@dataclass(frozen=True)
class Run:
    """How a model is trained."""

    method: Method = "lora"
    format: str = "bfloat16"  # of the products
    sequence: int = 4096  # tokens of an example
    batch: int = 32  # examples of an optimizer step, all chips together
    microbatch: int = 1  # examples that a chip works on at once
    recompute: bool = False  # activation checkpointing: keep the inputs of layers only
    rank: int = 16  # of LoRA
    virtual: int = 1  # pipeline: parts of a stage that are interleaved
    expert_parallel: int = 1  # chips that share the routed experts
    zero: bool = True  # optimizer states (and with it gradients and weights) spread over the replicas (ZeRO, FSDP)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidRequest(f"unknown method {self.method!r}; known are {', '.join(METHODS)}", param="method")


@dataclass(frozen=True)
class Training:
    """Of one chip, at the pace of the steps."""

    tokens: float  # a second
    mfu: float  # model FLOPs (no recomputation) over the chip's dense peak
    parts: dict[str, float] = field(default_factory=dict)  # seconds a token: arithmetic, activations, links, pipeline


def training_speed(
    shape: ModelShape, chip: ChipSpec, run: Run, layout: Layout, chips: int, constants: Constants = FITTED
) -> Training:
    """Tokens a second and chip on `chips` chips, each replica on `layout`."""
    n = layout.stage * layout.pp
    forward, attention = shape.matrix_flops(1), shape.attention_flops(1, run.sequence / 2, prompt=True)
    experts = shape.expert_flops(1)
    passes = (3 if run.method == "full" else 2) + run.recompute
    format = arithmetic_format(chip, run.format)
    rate = matmul_rate(chip, format, constants) * constants.training
    attention_rate = matmul_rate(chip, "bfloat16", constants) * constants.training * constants.training_attention
    products = (forward - experts + experts / constants.training_experts) / rate
    arithmetic = (passes * products + (3 + run.recompute) * attention / attention_rate) / n
    activations = constants.activations * shape.layers * shape.hidden * (3 + run.recompute) / chip.bandwidth / n
    tensor, exchange = _links(shape, chip, run, layout, constants)
    links = (tensor + max(0.0, exchange - (arithmetic + activations) * n)) / n
    microbatches = max(1.0, run.batch * n / chips / run.microbatch)
    busy = arithmetic + activations + links
    bubble = busy * (layout.pp - 1) / (microbatches * run.virtual)
    gather = _gather(shape, chip, run, layout, chips, passes)
    seconds = max(busy + bubble, gather)  # of a token, on each of the n chips
    tokens = 1 / (seconds * n)
    model = (3 if run.method == "full" else 2) * forward + 3 * attention
    parts = {"arithmetic": arithmetic, "activations": activations, "links": links, "pipeline": bubble}
    return Training(tokens, tokens * model / chip.flops[format], {name: value * n for name, value in parts.items()})


def _links(shape: ModelShape, chip: ChipSpec, run: Run, layout: Layout, constants: Constants) -> tuple[float, float]:
    """Seconds a token and replica that collectives take: each layer's activations twice forward and twice backward
    over tensor parallel chips; and to the chosen experts and back, which hides behind other tokens' arithmetic."""

    def seconds(each: float, chips: int) -> float:
        bandwidth = chip.link_bandwidth if chips <= chip.group else NETWORK_BANDWIDTH
        return each * (chips - 1) / chips / (bandwidth * constants.link) if chips > 1 and bandwidth else 0.0

    width = 2.0 * shape.hidden
    tensor = shape.layers * 4 * 2 * width / layout.stage
    experts = shape.moe_layers * 4 * width * shape.experts_per_token
    return seconds(tensor, layout.stage) * layout.stage, seconds(experts, run.expert_parallel)


def _gather(shape: ModelShape, chip: ChipSpec, run: Run, layout: Layout, chips: int, passes: int) -> float:
    """Seconds a token and chip to fetch the weights that others keep (ZeRO, FSDP), for each pass over a microbatch;
    arithmetic hides them or not."""
    n = layout.stage * layout.pp
    if not run.zero or chips <= n:
        return 0.0
    bandwidth = chip.link_bandwidth if chips <= chip.group and chip.link_bandwidth else NETWORK_BANDWIDTH
    return passes * 2.0 * shape.parameters() / n / (run.sequence * run.microbatch) / bandwidth


def memory_parts(shape: ModelShape, run: Run, layout: Layout, chips: int) -> dict[str, float]:
    """Bytes on each chip: weights, gradients, optimizer states (Adam in float32), activations."""
    n = layout.stage * layout.pp
    shards = chips if run.zero else n
    parameters = shape.parameters()
    if run.method == "full":
        trained, weights = parameters, 2.0 * parameters / shards
    else:
        base = "int4" if run.method == "qlora" else "bfloat16"
        trained, weights = adapter_parameters(shape, run.rank), shape.weight_bytes(base) / shards
    tokens = run.sequence * run.microbatch
    layers = shape.layers / layout.pp
    kept = 2 if run.recompute else ACTIVATION_BYTES / layout.tp
    whole = ACTIVATION_BYTES * tokens * shape.hidden / layout.tp if run.recompute else 0.0  # one layer at a time
    logits = 6.0 * tokens * shape.vocab / layout.tp
    return {
        "weights": weights,
        "gradients": 2.0 * trained / shards,
        "optimizer": 12.0 * trained / shards,
        "activations": layers * kept * tokens * shape.hidden * min(layout.pp, 2) + whole + logits,
    }


def fits(parts: dict[str, float], chip: ChipSpec) -> bool:
    return sum(parts.values()) <= chip.capacity * USABLE


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Elements of LoRA matrices on the projections of attention and of dense feed-forward blocks."""
    heads = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.layers * rank * (7 * shape.hidden + 3 * shape.intermediate + heads)
