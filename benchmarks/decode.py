"""Decoding: tokens/s, and the share of the memory bandwidth they use, against `transformers`' `generate`.

Both run the same weights on as many threads, with 1, 4 and 16 streams at once, in turn. `transformers` computes in
the same format as coserve; where that is not the checkpoint's own (a CPU without bfloat16 arithmetic), it is run in
the checkpoint's, too, and the ratio is to the better of the two.
Only decode steps are timed: from when every stream has its first token to when the first stream has its last.

    mbu = (bytes of the weights + of the keys and values that a step reads) * steps/s / bandwidth

with the bandwidth of a plain streaming read, measured in the same run. A model that fits into the processor's
cache can exceed 1.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.client import answers
from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import SMOLLM2_135M, BenchmarkModel, find_models
from benchmarks.options import at_least_8, benchmark_parser, positive
from benchmarks.report import Row, medians, paired_ratio, print_table, progress, write_json
from coserve.engine import Engine, Request, SamplingParams
from coserve.kernels.calibration import format_name, measure_bandwidth
from coserve.models.cost import ModelCost

KEYS = ("model", "engine", "streams")
OURS, THEIRS, THEIRS_AS_STORED = "coserve", "transformers", "transformers-as-stored"


@dataclass(frozen=True)
class Plan:
    streams: tuple[int, ...]
    prompt: int  # tokens
    output: int  # tokens
    rounds: int
    seed: int

    def prompts(self, streams: int, vocabulary: int) -> list[list[int]]:
        rng = random.Random(f"decode {self.seed}")
        return [[rng.randrange(16, vocabulary) for _ in range(self.prompt)] for _ in range(streams)]


class Ours:
    """The engine, as a program that imports it uses it."""

    def __init__(self, model: BenchmarkModel, **options: Any):
        self.engine = Engine.from_pretrained(model.path, name=model.name, **options)

    def tokens_per_s(self, prompts: Sequence[Sequence[int]], output: int) -> float:
        return decode_speed(self.token_times(prompts, output))

    def token_times(self, prompts: Sequence[Sequence[int]], output: int) -> list[list[float]]:
        """For each prompt when its tokens came, in seconds since the prompts were handed over."""
        params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        timelines = answers(self.engine, [Request(tuple(prompt), params, self.engine.name) for prompt in prompts])
        return [[when - timeline.due for when in timeline.tokens] for timeline in timelines]

    def close(self) -> None:
        self.engine.shutdown()


def decode_speed(times: Sequence[Sequence[float]]) -> float:
    """Tokens/s from when every stream has its first token to when the first stream has its last."""
    start, end = max(stream[0] for stream in times), min(stream[-1] for stream in times)
    return sum(start < when <= end for stream in times for when in stream) / (end - start)


class Transformers:
    """`generate`, greedy, all streams in one batch, with its default attention and cache."""

    def __init__(self, model: BenchmarkModel, dtype: torch.dtype):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).eval()
        self.model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no end of sequence

    def tokens_per_s(self, prompts: Sequence[Sequence[int]], output: int) -> float:
        ids = torch.tensor(prompts)
        steps: list[float] = []

        def watch(*_: Any, **__: Any) -> torch.Tensor:  # called after each step; stops nothing
            steps.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool)

        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=output,
                stopping_criteria=[watch],
            )
        return len(prompts) * (len(steps) - 1) / (steps[-1] - steps[0])


def step_bytes(cost: ModelCost, streams: int, prompt: int, output: int) -> float:
    """What a decode step must read when the streams are half-way through."""
    context = streams * (prompt + output / 2)
    return cost.forward(streams, context, context, streams).bytes


def measure(model: BenchmarkModel, plan: Plan) -> tuple[list[Row], Row]:
    progress(f"{model.name}: loading")
    ours = Ours(model)
    decoder = ours.engine.decoder
    peers: dict[str, Ours | Transformers] = {OURS: ours, THEIRS: Transformers(model, decoder.dtype)}
    if decoder.weight_dtype != decoder.dtype:
        peers[THEIRS_AS_STORED] = Transformers(model, decoder.weight_dtype)
    try:
        rows = _measure(model, plan, peers, ours.engine)
        bandwidth = statistics.median(measure_bandwidth() for _ in range(3))
    finally:
        ours.close()
    for row in rows:
        moved = step_bytes(ours.engine.cost, row["streams"], plan.prompt, plan.output)
        row["mbu"] = moved * row["tokens_per_s"] / row["streams"] / bandwidth
    weights = ours.engine.cost.forward(1, 0, 0, 1).bytes
    return rows, {
        "model": model.name,
        "format": format_name(decoder.dtype, decoder.weight_format),
        "weights_mb_per_step": weights / 1e6,
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "prompt_tokens": plan.prompt,
        "output_tokens": plan.output,
    }


def _measure(model: BenchmarkModel, plan: Plan, peers: dict[str, Ours | Transformers], engine: Engine) -> list[Row]:
    vocabulary, rows = engine.model_config.vocab_size, []
    for peer in peers.values():
        peer.tokens_per_s(plan.prompts(1, vocabulary), min(8, plan.output))  # warm-up
    for number in range(1, plan.rounds + 1):
        for streams in plan.streams:
            # The one that goes first changes from round to round.
            for name in list(peers)[:: 1 if number % 2 else -1]:
                speed = peers[name].tokens_per_s(plan.prompts(streams, vocabulary), plan.output)
                row = {"model": model.name, "round": number, "engine": name, "streams": streams}
                rows.append({**row, "tokens_per_s": speed})
                run = f"{model.name}, round {number}/{plan.rounds}, {streams} streams"
                progress(f"{run}: {name}: {speed:.1f} tokens/s")
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """The medians, and each one's speed over the better one's of `transformers` in the same round."""
    table = []
    for row in medians(rows, KEYS):
        keys = {key: row[key] for key in KEYS}
        peers = {r["engine"] for r in rows if r["model"] == row["model"]} - {OURS}
        ratios = [paired_ratio(rows, "tokens_per_s", keys, keys | {"engine": peer}) for peer in peers]
        table.append(row | {f"times {THEIRS}": min(r for r in ratios if r is not None)})
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = benchmark_parser("decode", __doc__.split("\n")[0], ("builtin", SMOLLM2_135M))
    parser.add_argument("--streams", type=positive, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--prompt", type=positive, metavar="TOKENS", help="tokens of each prompt")
    parser.add_argument("--output", type=at_least_8, metavar="TOKENS", help="tokens generated for each")
    options = parser.parse_args(arguments)
    plan, machine = plan_of(options), describe_machine()
    progress(machine_line(machine))
    every_round: list[Row] = []
    about: list[Row] = []
    for model in find_models(options.model):
        rows, facts = measure(model, plan)
        every_round += rows
        about.append(facts)
    if not every_round:
        raise SystemExit("there was no model to measure")
    print(f"\n{machine_line(machine)}\n")
    print_table(about)
    print()
    print_table(summary(every_round))
    if options.json:
        write_json(options.json, machine, medians(every_round, KEYS), models=about, every_round=every_round)


def plan_of(options: argparse.Namespace) -> Plan:
    quick = options.quick
    return Plan(
        tuple(options.streams),
        options.prompt or 32,
        options.output or (64 if quick else 128),
        options.rounds or (2 if quick else 5),
        options.seed,
    )


if __name__ == "__main__":
    main()
