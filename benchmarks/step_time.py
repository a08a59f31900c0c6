"""Where the time of a decode step goes: the engine's own operations, timed while N streams decode.

`products` are the layers' matrix products, `output matrix` the last one, `attention` that over the cached keys and
values, `sampling` the choice of the tokens. `small operations` are norms, activations, rotations with the KV write;
`the rest` is what is left of the time between two tokens: Python, scheduling, additions. The last two are `overhead`.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.decode import Ours, step_bytes
from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import LLAMA_1B, BenchmarkModel, cache_directory, find_models
from benchmarks.options import benchmark_parser, positive
from benchmarks.report import Row, medians, print_table, progress, write_json
from coserve.engine import EngineConfig
from coserve.kernels.calibration import measure_bandwidth
from coserve.kernels.layers import NativeLayers, seconds_by_part

KEYS = ("model", "weights", "streams", "part")
SMALL, REST = "small operations", "the rest"
PARTS = {  # what is looked up where it is called
    "products": ("coserve.models.decoder.lora_linear", "coserve.kernels.ops.lora_linear"),
    "output matrix": ("coserve.kernels.linear",),
    "attention": ("coserve.kernels.ops.paged_attention",),
    "sampling": ("coserve.engine.runner.sample",),
    SMALL: ("coserve.kernels.rms_norm", "coserve.kernels.ops.silu_and_mul", "coserve.kernels.ops.rope_and_store"),
}


class Stopwatch:
    """When each call of an operation began, in seconds since it was made, and how long it took."""

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.calls: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part, names in PARTS.items():
                for name in names:
                    module, _, function = name.rpartition(".")
                    owner = __import__(module, fromlist=[function])
                    stack.enter_context(patch.object(owner, function, self._timed(part, getattr(owner, function))))
            stack.enter_context(patch.object(NativeLayers, "__call__", self._layers(NativeLayers.__call__)))
            yield

    def _layers(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Parts of layers that are one call, which they count themselves."""

        def timed(*arguments: Any) -> Any:
            start, before = time.perf_counter() - self.made, seconds_by_part()
            result = function(*arguments)
            for part, seconds in seconds_by_part().items():
                self.calls[part].append((start, seconds - before[part]))
            return result

        return timed

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        calls = self.calls[part]

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                calls.append((start - self.made, time.perf_counter() - start))

        return timed

    def seconds(self, start: float, end: float) -> dict[str, float]:
        return {part: sum(took for at, took in calls if start <= at < end) for part, calls in self.calls.items()}


def measured_apart() -> float:
    """The bandwidth, measured on a thread that ends. OpenMP's threads would stay with one that does; the engine's
    are then more than there are processors with them, and sleep between its products."""
    with ThreadPoolExecutor(max_workers=1) as apart:
        return apart.submit(measure_bandwidth).result()


def measure(ours: Ours, streams: int, prompt: int, output: int, seed: int) -> dict[str, float]:
    """Seconds of a step by part."""
    rng, vocabulary = random.Random(seed), ours.engine.model_config.vocab_size
    prompts = [[rng.randrange(16, vocabulary) for _ in range(prompt)] for _ in range(streams)]
    watch = Stopwatch()
    with watch.running():
        watch.made = time.perf_counter()  # as `times` are
        times = ours.token_times(prompts, output)
    start, end = max(t[0] for t in times), min(t[-1] for t in times)
    steps = len([t for t in times[0] if start < t <= end])
    parts = {part: seconds / steps for part, seconds in watch.seconds(start, end).items()}
    return parts | {REST: (end - start) / steps - sum(parts.values())}


def rows_of(ours: Ours, keys: Row, parts: dict[str, float]) -> list[Row]:
    step = sum(parts.values())
    shown = parts | {"overhead": parts[SMALL] + parts[REST], "step": step}
    return [keys | {"part": part, "ms": 1e3 * seconds, "share": seconds / step} for part, seconds in shown.items()]


def plot(rows: Sequence[Row], path: Path) -> None:
    """A bar for each format and number of streams, of a step's parts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = list(dict.fromkeys(f"{row['weights']}, {row['streams']}" for row in rows))
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(bars) + 1.6))
    left = [0.0] * len(bars)
    for part in (*PARTS, REST):
        widths = [row["ms"] for row in rows if row["part"] == part]
        axis.barh(bars, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="ms of a decode step", ylabel="weights, streams")
    axis.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=3, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def measure_model(model: BenchmarkModel, weights: str, streams: Sequence[int], rounds: int, output: int) -> list[Row]:
    progress(f"{model.name}, {weights}: loading")
    config = EngineConfig(max_num_seqs=max(streams), itl_goal=60.0)
    ours = Ours(model, config=config, weights=weights, home=cache_directory() / "coserve")  # as a server has it
    rows: list[Row] = []
    try:
        measure(ours, 1, 32, 8, 0)
        for number in range(1, rounds + 1):
            for count in streams:
                ceiling = measured_apart()
                parts = measure(ours, count, 128, output, number)
                ceiling = max(ceiling, measured_apart())
                keys = {"model": model.name, "weights": weights, "streams": count, "round": number}
                mbu = step_bytes(ours.engine.cost, count, 128, output) / sum(parts.values()) / ceiling
                rows += [row | {"mbu": mbu} for row in rows_of(ours, keys, parts)]
                progress(f"{model.name}, {weights}, {count} streams: {1e3 * sum(parts.values()):.1f} ms, MBU {mbu:.2f}")
        error = ours.engine.stats().step_error_median
        progress(f"{model.name}, {weights}: the scheduler's predictions are off by {100 * error:.1f} % (median)")
    finally:
        ours.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = benchmark_parser("step_time", __doc__.split("\n")[0], (LLAMA_1B,))
    parser.add_argument("--weights", nargs="+", default=["int8", "int4", "bf16"], metavar="FORMAT")
    parser.add_argument("--streams", type=positive, nargs="+", default=[1, 4, 8, 16], metavar="N")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG or SVG)")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    rounds, output = options.rounds or (1 if options.quick else 3), 16 if options.quick else 48
    rows = [
        row
        for model in find_models(options.model)
        for weights in options.weights
        for row in measure_model(model, weights, options.streams, rounds, output)
    ]
    table = medians(rows, KEYS)
    print(f"\n{machine_line(machine)}\n")
    print_table(table)
    if options.plot:
        plot(table, options.plot)
    if options.json:
        write_json(options.json, machine, table, every_round=rows)


if __name__ == "__main__":
    main()
