"""The table of training alone: our trainer, and a plain PEFT loop with gradient checkpointing on the same weights.

LoRA of rank 16 on all linear modules, packed sequences, AdamW on the adapter, the same data.

    MFU = 6 * N * tokens/s / (FLOP/s of a large bfloat16 product)

N: the elements of all matrices that a token is multiplied with, without the embedding, which is looked up.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.gpu.bench import Bench, aim, free_memory
from benchmarks.gpu.model import random_decoder
from benchmarks.processes import ChildError, child_reports
from benchmarks.report import Row, progress
from benchmarks.training import Run
from benchmarks.training_load import TrainingShape, new_trainer
from coserve.models.cost import ModelCost
from coserve.training import TrainingEvent
from coserve.training.passes import Machine
from coserve.training.run import machine_for

_PEER_LIMIT = 120.0  # seconds
_ALIKE = 0.02  # share by which the mean losses may differ: both see the same data, each in its own order


def shape_of(bench: Bench) -> TrainingShape:
    return TrainingShape(bench.size.sequences, bench.size.tokens)


def measure(bench: Bench) -> list[Row]:
    steps = 3 if bench.quick else 6
    bench.close_engine()
    ours, elements = _ours(bench, steps)
    free_memory()
    try:
        return rows_of(bench, ours, _peft(bench, steps), elements)
    except ChildError as error:
        return [*rows_of(bench, ours, None, elements), {"figure": "the PEFT loop", "peft": str(error), "met": "**no**"}]


def rows_of(bench: Bench, ours: Run, peft: Run | None, elements: int) -> list[Row]:
    tokens = shape_of(bench).step_tokens
    speed, theirs = ours.tokens_per_s(tokens), peft.tokens_per_s(tokens) if peft else None
    loss, other = statistics.fmean(ours.losses), statistics.fmean(peft.losses) if peft else None
    mfu, their_mfu = (None if v is None else 6 * elements * v / bench.ceilings.matmul for v in (speed, theirs))
    times = speed / theirs if theirs else None
    apart = abs(loss / other - 1) if other else None
    return [
        {"figure": "MFU", "coserve": mfu, "peft": their_mfu, "ratio": None, **aim(mfu, at_least=0.45)},
        {"figure": "tokens/s", "coserve": speed, "peft": theirs, "ratio": times, **aim(times, at_least=1.3)},
        {"figure": "mean loss", "coserve": loss, "peft": other, "ratio - 1": apart, **aim(apart, at_most=_ALIKE)},
    ]


def _ours(bench: Bench, steps: int) -> tuple[Run, int]:
    """The run, and N."""
    decoder = random_decoder(bench.size.config, "bf16", bench.device)
    machine = machine_for(decoder, shape_of(bench).step_tokens)
    return train_steps(bench, machine, steps), matrix_elements(decoder.cost)


def _peft(bench: Bench, steps: int) -> Run:
    shape = shape_of(bench)
    task = {"name": "peft", "sequences": shape.sequences, "tokens": shape.tokens, "seed": bench.seed, "steps": steps}
    dtype = "float32" if bench.device == "cpu" else "bfloat16"
    told = {"config": bench.size.config, "device": bench.device, "dtype": dtype, "tasks": [task]}
    said = {}
    for said in child_reports("benchmarks.gpu.peers", told, min(_PEER_LIMIT, bench.left - 5)):
        progress(f"peft: {said}"[:200])
    if "ends" not in said:
        raise ChildError(said.get("error", "it reported nothing"))
    return Run(tuple(said["ends"]), tuple(said["losses"]))


def train_steps(bench: Bench, machine: Machine, steps: int) -> Run:
    """So many optimizer steps and one to warm up, with nothing else on the chip."""
    shape = shape_of(bench)
    ends: list[float] = []
    losses: list[float] = []

    def note(event: TrainingEvent) -> None:
        if event.error is not None:
            raise event.error
        if event.kind == "metrics":
            ends.append(time.perf_counter())
            losses.append(event.metrics["loss"])
            progress(f"training: step {event.step}, loss {losses[-1]:.4f}")

    data = shape.data(bench.size.config["vocab_size"], bench.seed, batches=steps + 1)
    new_trainer(machine, data, shape.config(max_steps=steps + 1), lambda tokens: None, note).run()
    return Run(tuple(ends), tuple(losses))


def matrix_elements(cost: ModelCost) -> int:
    return cost.layers * cost.layer_weights + cost.head_weights
