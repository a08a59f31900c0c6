"""Serving on a CPU against llama.cpp and OpenVINO GenAI: tokens/s, and the share of the memory bandwidth they use.

All serve weights made from one checkpoint, in bfloat16, 8 and 4 bits, on as many threads, in turn, each in a process of
its own; who goes first changes from round to round. `decode`: N streams at once, timed from when every stream has its
first token to when the first stream has its last. `prefill`: tokens of one prompt over the time to its first token.

    mbu = (bytes of the weights + of the keys and values that a decode step reads) * steps/s / ceiling

with each engine's own bytes, and as ceiling the faster of two plain streaming reads, right before and right after.
`others_cores`: how many cores other programs kept busy meanwhile. With `--patience`, a measurement in which that was
above 0.1 is repeated for so long, and the one that was disturbed least counts.

The peers are the extra `bench`. They need other versions of some packages than coserve's tests do: install it into an
environment of its own and name its interpreter with `--peers-python`. What they load is made once and kept in
`~/.cache/coserve-benchmarks`, 8 GB for the default model.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_engines.setup import Setup
from benchmarks.cpu_engines.worker import ENGINES
from benchmarks.decode import decode_speed
from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import LLAMA_1B, LLAMA_126M, BenchmarkModel, cache_directory, find_models
from benchmarks.options import at_least_8, benchmark_parser, positive, seconds
from benchmarks.others import Others, cores_between
from benchmarks.report import Row, medians, print_table, progress, write_json
from coserve.kernels.calibration import measure_bandwidth
from coserve.models.config import ModelConfig

KEYS = ("model", "weights", "phase", "streams", "engine")
OURS = "coserve"
WEIGHTS = ("int8", "int4", "bf16")
ROOT = Path(__file__).resolve().parents[1]
_QUIET = 0.1  # cores that others may keep busy
_BLOCK = 256  # a stream's context is a multiple of it
_CHUNK = 2048  # tokens of prompts in a step, at least


@dataclass(frozen=True)
class Case:
    """What is measured of each engine, one after the other."""

    phase: str  # decode or prefill
    streams: int
    prompt: int  # tokens
    output: int  # tokens

    def prompts(self, vocabulary: int, seed: str) -> list[list[int]]:
        rng = random.Random(f"{seed} {self.phase} {self.streams}")
        return [[rng.randrange(16, vocabulary) for _ in range(self.prompt)] for _ in range(self.streams)]

    def tokens_per_s(self, times: Sequence[Sequence[float]]) -> float:
        return decode_speed(times) if self.phase == "decode" else self.prompt / times[0][0]


@dataclass(frozen=True)
class Plan:
    cases: tuple[Case, ...]
    weights: tuple[str, ...]
    rounds: int
    seed: int
    patience: float = 0.0  # seconds

    def setup(self, model: BenchmarkModel, weights: str) -> Setup:
        longest = max(case.prompt + case.output for case in self.cases)
        return Setup(
            model.name,
            str(model.path.resolve()),
            weights,
            threads=torch.get_num_threads(),
            streams=max(case.streams for case in self.cases),
            context=-(-longest // _BLOCK) * _BLOCK,
            chunk=max(_CHUNK, *(case.streams * case.prompt for case in self.cases)),
            cache=str(cache_directory() / "cpu-decode"),
        )


class EngineError(Exception):
    """What an engine, or the end of its process, has to say."""


class Worker:
    """A process that holds one engine, under the interpreter that has it."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.cpu_engines.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.installed: Mapping[str, str | None] = self._read()
        self.weight_bytes = self.token_bytes = 0.0

    def load(self, engine: str, setup: Setup) -> None:
        sizes = self._ask(do="load", engine=engine, setup=asdict(setup))
        self.weight_bytes, self.token_bytes = sizes["weight_bytes"], sizes["token_bytes"]

    def run(self, prompts: list[list[int]], output: int) -> list[list[float]]:
        return self._ask(do="run", prompts=prompts, output=output)["times"]

    def mbu(self, case: Case, tokens_per_s: float, ceiling: float) -> float:
        """With the streams half-way through their outputs."""
        context = case.streams * (case.prompt + case.output / 2)
        return (self.weight_bytes + self.token_bytes * context) * tokens_per_s / case.streams / ceiling

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def _ask(self, **job: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says so
            print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = self._read()
        if "why" in answer:
            raise EngineError(answer["why"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(f"its process ended with status {self.process.wait()}")
        return json.loads(line)


@dataclass(frozen=True)
class Pythons:
    """Whose interpreter has which engine."""

    ours: str
    peers: str

    def of(self, engine: str) -> str:
        return self.ours if engine == OURS else self.peers

    def present(self, engines: Sequence[str]) -> dict[str, str]:
        """Versions of those that are installed; of each other one a line says that it is not."""
        found = {}
        for engine in engines:
            worker = Worker(self.of(engine))
            worker.close()
            if version := worker.installed[engine]:
                found[engine] = version
            else:
                progress(f"{engine} is not installed: pip install -e .[bench], and --peers-python; left out")
        return found


def measure(model: BenchmarkModel, plan: Plan, engines: Sequence[str], pythons: Pythons) -> list[Row]:
    vocabulary = ModelConfig.from_directory(model.path).vocab_size
    rows: list[Row] = []
    for weights in plan.weights:
        workers: dict[str, Worker] = {}
        try:
            for engine in engines:
                _load(engine, plan.setup(model, weights), pythons, workers)
            rows += _measure(model, weights, plan, workers, vocabulary)
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def _load(engine: str, setup: Setup, pythons: Pythons, workers: dict[str, Worker]) -> None:
    """Add its worker; without one that fails, which is said."""
    progress(f"{setup.name}, {setup.weights}: {engine}: loading")
    worker = Worker(pythons.of(engine))
    try:
        worker.load(engine, setup)
        worker.run([list(range(16, 32))], 4)  # warm-up
    except EngineError as error:
        progress(f"{setup.name}, {setup.weights}: {engine}: {error}; left out")
        worker.close()
    else:
        workers[engine] = worker


def _measure(
    model: BenchmarkModel, weights: str, plan: Plan, workers: Mapping[str, Worker], vocabulary: int
) -> list[Row]:
    rows = []
    for number in range(1, plan.rounds + 1):
        for case in plan.cases:
            seed = f"cpu_decode {plan.seed} {number}"
            for engine in in_turn(list(workers), number):
                figures = _least_disturbed(case, workers, engine, vocabulary, seed, plan.patience)
                row = {"model": model.name, "weights": weights, "phase": case.phase, "streams": case.streams}
                rows.append(row | {"engine": engine, "round": number} | figures)
                run = f"{model.name}, {weights}, round {number}/{plan.rounds}, {case.phase}, {case.streams} streams"
                speed, ceiling = figures["tokens_per_s"], figures["ceiling_gb_per_s"]
                words = f"{speed:.1f} tokens/s, ceiling {ceiling:.1f} GB/s"
                if disturbed(figures) > _QUIET:
                    words += f"; others kept {figures['others_cores']:.1f} cores busy"
                progress(f"{run}: {engine}: {words}")
    return rows


def _least_disturbed(
    case: Case, workers: Mapping[str, Worker], engine: str, vocabulary: int, seed: str, patience: float
) -> Row:
    """Measured once, or until nothing else runs, but with new prompts: no engine may know them."""
    others = Others.than(worker.process.pid for worker in workers.values())
    end, found = time.perf_counter() + patience, []
    while not found or (disturbed(found[-1]) > _QUIET and time.perf_counter() < end):
        others.wait_for_quiet(_QUIET, end - time.perf_counter())
        prompts = case.prompts(vocabulary, f"{seed} {len(found)}")
        before, looked = measure_bandwidth(), others.look()
        speed = case.tokens_per_s(workers[engine].run(prompts, case.output))
        cores = cores_between(looked, others.look())
        ceiling = max(before, measure_bandwidth())
        decodes = case.phase == "decode"
        found.append(
            {
                "tokens_per_s": speed,
                "ceiling_gb_per_s": ceiling / 1e9,
                "mbu": workers[engine].mbu(case, speed, ceiling) if decodes else None,
                "others_cores": cores,
            }
        )
    return min(found, key=disturbed)


def disturbed(row: Row) -> float:
    return row["others_cores"] or 0.0


def in_turn(engines: Sequence[str], number: int) -> list[str]:
    """Another one goes first in each round."""
    first = (number - 1) % max(1, len(engines))
    return [*engines[first:], *engines[:first]]


def beside_peers(rows: Sequence[Row]) -> list[Row]:
    """Each row with its speed over the better peer's in the same round; None where there is no peer."""
    keys = ("model", "weights", "phase", "streams", "round")
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["engine"] != OURS:
            place = tuple(row[key] for key in keys)
            best[place] = max(row["tokens_per_s"], best.get(place, 0.0))
    found = [best.get(tuple(row[key] for key in keys)) for row in rows]
    return [
        row | {"times_better_peer": row["tokens_per_s"] / peer if peer else None}
        for row, peer in zip(rows, found, strict=True)
    ]


def summary(rows: Sequence[Row]) -> list[Row]:
    """The medians, those of one setting side by side."""
    order = {key: list(dict.fromkeys(row[key] for row in rows)) for key in KEYS} | {"engine": list(ENGINES)}
    return sorted(medians(rows, KEYS), key=lambda row: [order[key].index(row[key]) for key in KEYS])


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    plan, machine = plan_of(options), describe_machine()
    progress(machine_line(machine))
    pythons = Pythons(sys.executable, options.peers_python)
    engines = pythons.present(options.engines)
    models = options.model or [LLAMA_126M if options.quick else LLAMA_1B]
    rows = [row for model in find_models(models) for row in measure(model, plan, list(engines), pythons)]
    if not rows:
        raise SystemExit("there was nothing to measure")
    rows = beside_peers(rows)
    versions = ", ".join(f"{engine} {version}" for engine, version in engines.items())
    print(f"\n{machine_line(machine)}\n{versions}\n")
    print_table(summary(rows))
    if options.json:
        about = {"versions": engines, "cases": [asdict(case) for case in plan.cases]}
        write_json(options.json, machine, summary(rows), **about, every_round=rows)


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("cpu_decode", __doc__.split("\n")[0], (LLAMA_1B,))
    parser.set_defaults(model=None)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), metavar="FORMAT")
    parser.add_argument("--streams", type=positive, nargs="+", metavar="N", help="of the decoding")
    parser.add_argument("--prompt", type=positive, default=128, metavar="TOKENS", help="before the decoding")
    parser.add_argument("--output", type=at_least_8, metavar="TOKENS", help="decoded for each stream")
    parser.add_argument("--prefill", type=positive, metavar="TOKENS", help="of the prompt whose first token is timed")
    parser.add_argument("--patience", type=seconds, default=0.0, metavar="SECONDS", help="to wait for a quiet machine")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter of the environment that has the peers (default: this one)",
    )
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    quick = options.quick
    prefill = options.prefill or (256 if quick else 512)
    streams = options.streams or ([1, 4] if quick else [1, 4, 8, 16])
    output = options.output or (24 if quick else 48)
    cases = [Case("prefill", 1, prefill, 1), *(Case("decode", n, options.prompt, output) for n in streams)]
    rounds = options.rounds or (2 if quick else 5)
    return Plan(tuple(cases), tuple(options.weights), rounds, options.seed, options.patience)


if __name__ == "__main__":
    main()
