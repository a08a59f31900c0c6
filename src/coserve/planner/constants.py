"""The fitted constants: all that the planner knows beside the chips' sheets and the models' shapes.

`python -m benchmarks.planner_validation` fits them again on published measurements and prints the error with whole
chips and models left out; docs/planner.md has the result. Everything else in a prediction is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Constants:
    """Shares are of what the chip's sheet states, or of its best measured matrix product; times are in seconds."""

    memory: float = 0.955  # share of the bandwidth that a decode step's reads reach
    matmul: float = 0.75  # best matrix product's share of the dense peak, where nobody measured it
    cpu_matmul: float = 0.461  # the same on a CPU
    arithmetic: float = 1.06  # share of the best product's rate that a model's products reach
    attention: float = 0.173  # share of that again that scores and values reach
    link: float = 0.861  # share of the link bandwidth that collectives reach
    hop: float = 0.626  # stated link latencies that a message takes through a switch
    ring_hop: float = 1.18  # and from a chip to the next around a ring
    layer: float = 36.4e-6  # a layer's kernels, one after the other
    cpu_layer: float = 120e-6  # the same on a CPU, by coserve's own engine
    cpu_sequence: float = 150e-6  # and what a sequence takes there,
    cpu_token: float = 5e-9  # with each token of the vocabulary that sampling goes through
    expert_layer: float = 54.8e-6  # what routing adds to a layer with experts
    step: float = 0.622e-3  # the engine's own work for a step
    sequence: float = 38.1e-6  # and for each sequence in it: sampling, detokenisation
    crossings: float = 20.0  # of a dataflow machine, for a layer: its operators one after the other; not fitted
    kernel: float = 5.46e-6  # one operator alone: its launch
    operator_memory: float = 0.818  # share of the bandwidth that it reaches
    operator_arithmetic: float = 0.839  # share of the best product's rate that it reaches
    small_kernel: float = 1.44e-6  # the same of an elementwise operator
    load_cycles: float = 1020.0  # cycles that its threads wait for each load
    training: float = 0.833  # share of the best product's rate that training's products reach
    training_attention: float = 0.411  # share of it that attention reaches, backward pass included
    training_experts: float = 0.3  # and that routed experts reach
    activations: float = 146.0  # bytes that a pass moves of activations, a token, layer and unit of hidden width
    first_token: Mapping[str, float] = field(
        default_factory=lambda: {"tensorrt-llm": 126e-3, "vllm": 44.8e-3, "sglang": 197e-3}
    )  # of a server, by engine, before and after a prompt's pass


FITTED = Constants()
"""The values that `coserve plan` uses."""
