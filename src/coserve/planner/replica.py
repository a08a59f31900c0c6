"""One copy of a model on chips of a kind: what a forward pass asks of them, and how long it takes.

A pass is counted (bytes, FLOPs, messages), then timed by the roofline that drives the engine, with what the roofline
does not see added: collectives over the links, and time that every layer, step and sequence takes whatever its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from coserve.chips import ChipSpec
from coserve.planner.constants import FITTED, Constants
from coserve.planner.formats import number_format
from coserve.planner.layout import ONE_CHIP, Layout
from coserve.planner.shape import ModelShape
from coserve.roofline import Chip, Roofline, Work

Bound = Literal["memory bandwidth", "arithmetic", "interconnect", "latency", "capacity"]

USABLE = 0.9
"""Share of a chip's memory that weights and cache may fill; the rest is the runtime's and the activations'. vLLM's
default (`--gpu-memory-utilization`)."""
NETWORK_BANDWIDTH = 50e9
"""Bytes/s of a chip to chips outside its group: one 400 Gb/s adapter a chip, as the usual servers have."""
NETWORK_LATENCY = 5e-6
"""Seconds of a message over that network."""


@dataclass(frozen=True)
class Pass:
    """What one forward pass asks of the busiest chip of a replica, all stages after another."""

    weights: float  # bytes of weights read
    cache: float  # bytes of KV cache read
    matrix: float  # FLOPs of products with weights
    attention: float  # FLOPs of scores and values
    messages: float  # that follow one another
    moved: float  # bytes over the links
    sequences: float  # that are decoded by one chip


@dataclass(frozen=True)
class Seconds:
    """Where the time of a pass goes. Memory and arithmetic overlap; the rest adds."""

    memory: float
    arithmetic: float
    links: float  # bytes of collectives
    latency: float  # messages, layers, the step itself
    total: float

    @property
    def bound(self) -> Bound:
        """The largest part."""
        parts: dict[Bound, float] = {
            "memory bandwidth": self.memory,
            "arithmetic": self.arithmetic,
            "interconnect": self.links,
            "latency": self.latency,
        }
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Replica:
    shape: ModelShape
    chip: ChipSpec
    layout: Layout = ONE_CHIP
    weights: str = "bfloat16"  # number format of the matrices
    cache: str = "bfloat16"  # of keys and values
    engine: str = "vllm"  # the software: a name in `constants.first_token`
    constants: Constants = FITTED

    # --- memory -------------------------------------------------------------------------------

    @cached_property
    def weight_bytes(self) -> float:
        """Bytes of weights on all its chips, copies of attention's included."""
        return self.shape.weight_bytes(self.weights) + (self.layout.dp - 1) * self._dense_bytes

    @cached_property
    def room(self) -> float:
        """Bytes for KV cache on all its chips together; negative if the weights do not fit."""
        return self.layout.chips * self.chip.capacity * USABLE - self.weight_bytes

    def sequence_bytes(self, context: float) -> float:
        """Bytes of cache that a sequence takes on all its chips: keys and values are copied where there are fewer
        heads than chips."""
        copies = self.layout.tp / self.shape.kv_chips(self.layout.tp)
        return self.shape.kv_bytes(context, self.cache) * copies

    def slots(self, context: float) -> int:
        """Sequences of that length that fit."""
        each = self.sequence_bytes(context)
        return max(0, int(self.room / each)) if each else 1 << 20

    # --- passes -------------------------------------------------------------------------------

    def decode_pass(self, batch: float, context: float, tokens: int = 1) -> Pass:
        """`tokens` tokens each (more than one: guesses are checked) for `batch` sequences, which have `context` tokens
        on average. With several stages the batch is in as many parts, one a stage."""
        part = max(1.0, batch / self.layout.pp)
        spread = self.layout.dp * self.shape.kv_chips(self.layout.tp)
        return self._pass(
            part * tokens,
            cache=part * self.shape.kv_read_bytes(context, self.cache) / spread,
            attention=self.shape.attention_flops(part * tokens, context),
            sequences=part,
        )

    def prompt_pass(self, tokens: float, before: float = 0.0) -> Pass:
        """A prompt of `tokens` tokens after `before` tokens that are in the cache already."""
        found = self._prompts.get((tokens, before))
        if found is None:
            attention = self.shape.attention_flops(tokens, before + tokens / 2, prompt=True)
            found = self._prompts[tokens, before] = self._pass(tokens, cache=0.0, attention=attention, sequences=0.0)
        return found

    @cached_property
    def _prompts(self) -> dict[tuple[float, float], Pass]:
        """Counted once: a search asks for the same prompt beside batch after batch."""
        return {}

    @cached_property
    def _dense_bytes(self) -> float:
        return self.shape.dense_bytes(self.weights)

    def _pass(self, tokens: float, cache: float, attention: float, sequences: float) -> Pass:
        layout, shape = self.layout, self.shape
        n = layout.stage
        collectives = 2 * shape.layers if n > 1 else 0
        bytes_each = 2 * (n - 1) / n * tokens / layout.dp * shape.hidden * 2
        return Pass(
            weights=self._dense_bytes / layout.tp + shape.expert_bytes(self.weights, tokens) / n,
            cache=cache,
            matrix=shape.matrix_flops(tokens) / n,
            attention=attention / n,
            messages=collectives * self._hops(n) + layout.pp - 1,
            moved=collectives * bytes_each,
            sequences=sequences / layout.dp,
        )

    def _hops(self, chips: int) -> float:
        """Messages in a row of an all-reduce."""
        if self.chip.topology == "ring":
            return 2 * (chips - 1)
        return math.log2(chips)

    # --- time ---------------------------------------------------------------------------------

    def decode(self, batch: float, context: float, tokens: int = 1) -> Seconds:
        """Seconds of a decode step."""
        p = self.decode_pass(batch, context, tokens)
        return self._seconds(p, p.messages * self._latency + self._overhead(p.sequences), self.few_rows)

    def prompt(self, tokens: float, before: float = 0.0) -> Seconds:
        """Seconds of a prompt's own pass."""
        p = self.prompt_pass(tokens, before)
        return self._seconds(p, p.messages * self._latency + self._overhead(0))

    @cached_property
    def first_token(self) -> float:
        """Seconds that the server takes beside a prompt's pass until the first token is out."""
        if self.chip.kind in ("cpu", "dataflow"):
            return 0.0
        return self.constants.first_token[self.engine]

    def prompt_share(self, step: Seconds, tokens: float, before: float = 0.0) -> float:
        """Seconds that a prompt adds to a decode step that runs anyway: what of its arithmetic does not hide behind
        the step's reads, and its bytes over the links. With several stages it is at one of them at a time."""
        p = self._seconds(self.prompt_pass(tokens, before), 0.0)
        together = max(step.memory, step.arithmetic + p.arithmetic)
        return (together - max(step.memory, step.arithmetic) + p.links) / self.layout.pp

    def _seconds(self, p: Pass, latency: float, roofline: Roofline | None = None) -> Seconds:
        roofline = roofline or self.roofline
        chip = roofline.chip
        flops = p.matrix + p.attention * chip.flops / self._attention_rate
        memory = (p.weights + p.cache) / (chip.bandwidth * chip.efficiency)
        links = p.moved / (self._link_bandwidth * self.constants.link) if p.moved else 0.0
        total = roofline.seconds(Work(p.weights + p.cache, flops)) + links + latency
        return Seconds(memory, flops / chip.flops, links, latency, total)

    @cached_property
    def roofline(self) -> Roofline:
        """The chip as the scheduler's roofline sees it, for this number format."""
        c, format = self.constants, arithmetic_format(self.chip, self.weights)
        reached, read = (1.0, 1.0) if self.chip.measured else (c.arithmetic, c.memory)
        rate = matmul_rate(self.chip, format, c) * reached
        return Roofline(Chip(self.chip.name, format, self.chip.bandwidth, rate, read, self.chip.overlap))

    @cached_property
    def few_rows(self) -> Roofline:
        """The same for products with few rows, where they were measured to be slower."""
        rate = self.chip.few_rows
        return Roofline(replace(self.roofline.chip, flops=rate)) if rate else self.roofline

    @cached_property
    def _attention_rate(self) -> float:
        c = self.constants
        return matmul_rate(self.chip, "bfloat16", c) * (1.0 if self.chip.measured else c.arithmetic * c.attention)

    @cached_property
    def _link_bandwidth(self) -> float:
        return self.chip.link_bandwidth if self.layout.stage <= self.chip.group else NETWORK_BANDWIDTH

    @cached_property
    def _latency(self) -> float:
        inside = self.layout.stage <= self.chip.group
        hop = self.constants.ring_hop if self.chip.topology == "ring" else self.constants.hop
        return (self.chip.link_latency if inside else NETWORK_LATENCY) * hop

    def _overhead(self, sequences: float) -> float:
        c, shape = self.constants, self.shape
        if self.chip.kind == "dataflow":
            return shape.layers * c.crossings * self.chip.crossing
        cpu = self.chip.kind == "cpu"
        layer = c.cpu_layer if cpu else c.layer
        sequence = c.cpu_sequence + c.cpu_token * shape.vocab if cpu else c.sequence
        return shape.layers * layer + shape.moe_layers * c.expert_layer + c.step + sequences * sequence


def arithmetic_format(chip: ChipSpec, weights: str) -> str:
    """The format that products with such weights are computed in: their own where the chip has it, else bfloat16."""
    format = number_format(weights)
    if format == "mxfp4" and "float4" in chip.flops:
        return "float4"
    return format if format in chip.flops else "bfloat16"


def matmul_rate(chip: ChipSpec, format: str, constants: Constants = FITTED) -> float:
    """FLOP/s of the best matrix product: as measured, else the peak times the share that was measured in another
    format, else times what is usual."""
    if format in chip.matmul:
        return chip.matmul[format]
    usual = constants.cpu_matmul if chip.kind == "cpu" else constants.matmul
    known = [name for name in chip.matmul if name in chip.flops]
    share = min((chip.matmul[name] / chip.flops[name] for name in known), default=usual)
    return chip.flops[format] * share
