"""Fine-tuning alone: our trainer against a plain PEFT loop, on the same model and data.

LoRA of rank 16 on all linear layers, AdamW, all tokens learnt. `peft` is the loop that users write: a
`transformers` model with gradient checkpointing, `peft`'s adapters, one optimizer step for a batch;
`peft-no-checkpointing` keeps all activations instead, which takes more memory and saves a forward pass. All
run in one process, in turn, and compute in the format that coserve chooses on this machine (`--dtype auto`):
on a CPU without bfloat16 arithmetic the loop is several times slower in the checkpoint's own.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import SMOLLM2_135M, BenchmarkModel, find_models
from benchmarks.options import benchmark_parser, positive
from benchmarks.report import Row, medians, paired_ratio, print_table, progress, write_json
from benchmarks.training_load import TrainingShape, new_trainer
from coserve.kernels.device import CPU
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.dtype import auto_dtype
from coserve.training import TrainingEvent, TrainSequence
from coserve.training.run import machine_for

KEYS = ("model", "trainer")
OURS, PEFT, PEFT_PLAIN = "coserve", "peft", "peft-no-checkpointing"
TRAINERS = (OURS, PEFT, PEFT_PLAIN)


@dataclass(frozen=True)
class Run:
    """The end of each optimizer step, on `time.perf_counter`'s clock, and its loss."""

    ends: tuple[float, ...]
    losses: tuple[float, ...]

    def tokens_per_s(self, step_tokens: int) -> float:
        """Without the first step, which warms up."""
        return step_tokens * (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])


class Peer(Protocol):
    def train(self, data: Sequence[TrainSequence], steps: int) -> Run: ...


class Ours:
    def __init__(self, decoder: Decoder, shape: TrainingShape):
        self.shape = shape
        self.machine = machine_for(decoder, shape.step_tokens)

    def train(self, data: Sequence[TrainSequence], steps: int) -> Run:
        ends: list[float] = []
        losses: list[float] = []

        def note(event: TrainingEvent) -> None:
            if event.kind == "failed" and event.error is not None:
                raise event.error
            if event.kind == "metrics":
                ends.append(time.perf_counter())
                losses.append(event.metrics["loss"])

        config = self.shape.config(max_steps=steps)
        new_trainer(self.machine, data, config, lambda tokens: None, note).run()
        return Run(tuple(ends), tuple(losses))


class PeftLoop:
    """What a user writes with `transformers` and `peft`, without a trainer's framework around it."""

    def __init__(self, base: Any, shape: TrainingShape, *, checkpointing: bool):
        """`base`: the `transformers` model, where it is to be trained."""
        import peft

        base.config.use_cache = False
        if checkpointing:
            # The newer name, where there is one.
            getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
        lora = shape.config().lora
        self.config = peft.LoraConfig(
            r=lora.r, lora_alpha=int(lora.lora_alpha), target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.shape, self.model = shape, peft.get_peft_model(base, self.config).train()

    def train(self, data: Sequence[TrainSequence], steps: int) -> Run:
        rate = self.shape.config().learning_rate
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
        ends: list[float] = []
        losses: list[float] = []
        for batch in itertools.islice(self._batches(data), steps):
            loss = self.model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            ends.append(time.perf_counter())
        return Run(tuple(ends), tuple(losses))

    def _batches(self, data: Sequence[TrainSequence]) -> Any:
        size = self.shape.sequences
        for first in itertools.cycle(range(0, len(data), size)):
            tokens = [sequence.tokens for sequence in data[first : first + size]]
            yield torch.tensor(tokens, device=self.model.device)


def new_peer(name: str, model: BenchmarkModel, shape: TrainingShape) -> Peer:
    if name == OURS:
        return Ours(Decoder.from_directory(model.path), shape)
    dtype = auto_dtype(ModelConfig.from_directory(model.path), CPU)
    return PeftLoop(load_base(model.path, dtype), shape, checkpointing=name == PEFT)


def load_base(path: Path, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def measure(
    model: BenchmarkModel, trainers: Sequence[str], shape: TrainingShape, steps: int, rounds: int, seed: int
) -> list[Row]:
    """`steps` optimizer steps (and one to warm up) of each trainer in each round."""
    rows = []
    progress(f"{model.name}: loading")
    peers = {name: new_peer(name, model, shape) for name in trainers}
    vocabulary = ModelConfig.from_directory(model.path).vocab_size
    for number in range(1, rounds + 1):
        data = shape.data(vocabulary, seed + number, batches=steps + 1)
        turn = (number - 1) % len(trainers)
        for name in [*trainers[turn:], *trainers[:turn]]:
            gc.collect()
            run = peers[name].train(data, steps + 1)
            speed = run.tokens_per_s(shape.step_tokens)
            row = {"model": model.name, "round": number, "trainer": name, "tokens_per_s": speed}
            rows.append({**row, "loss": statistics.fmean(run.losses)})
            progress(f"{model.name}, round {number}/{rounds}: {name}: {speed:.1f} tokens/s")
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """The medians, and each trainer's speed over the PEFT loop's of the same round."""
    table = []
    for row in medians(rows, KEYS):
        keys = {key: row[key] for key in KEYS}
        ratio = paired_ratio(rows, "tokens_per_s", keys, keys | {"trainer": PEFT})
        table.append(row | {f"times {PEFT}": ratio})
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = benchmark_parser("training", __doc__.split("\n")[0], (SMOLLM2_135M,))
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, metavar="TRAINER", help=" ".join(TRAINERS))
    parser.add_argument("--steps", type=positive, metavar="N", help="optimizer steps that are timed")
    parser.add_argument("--sequences", type=positive, default=2, help="of an optimizer step; default 2")
    parser.add_argument("--tokens", type=positive, default=512, help="of a sequence; default 512")
    options = parser.parse_args(arguments)
    shape, machine = TrainingShape(options.sequences, options.tokens), describe_machine()
    progress(machine_line(machine))
    trainers, rounds, steps = plan_of(options)
    rows: list[Row] = []
    for model in find_models(options.model):
        rows += measure(model, trainers, shape, steps, rounds, options.seed)
    if not rows:
        raise SystemExit("there was no model to measure")
    print(f"\n{machine_line(machine)}\n")
    print_table(summary(rows))
    batch = f"{shape.sequences} sequences of {shape.tokens} tokens"
    print(f"\nMedians of {rounds} rounds of {steps} steps of {batch}.")
    print("loss: the mean of each run; all see the same data, each in its own order.")
    if options.json:
        write_json(options.json, machine, medians(rows, KEYS), every_round=rows)


def plan_of(options: argparse.Namespace) -> tuple[tuple[str, ...], int, int]:
    """(trainers, rounds, timed steps)."""
    quick = options.quick
    trainers = options.trainers or ((OURS, PEFT) if quick else TRAINERS)
    return tuple(trainers), options.rounds or (1 if quick else 3), options.steps or (3 if quick else 6)


if __name__ == "__main__":
    main()
