"""The table of the kernels: are they right, and what share of the bandwidth or of a product's rate do they reach?

Each kernel, at the shapes of a layer of Llama 3.1 8B with random numbers, is compared with float64 and, where coserve
promises that a row's result does not depend on its company, some rows by themselves with the same rows in it, to the
bit. Launches are timed as a CUDA graph, from memory and not from the cache: each has another copy of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.bench import Bench, Ceilings, aim, free_memory, seconds_of
from benchmarks.report import Row, progress

if TYPE_CHECKING:
    from benchmarks.gpu.cases import Case

_LAUNCHES = 20  # in a graph, at least


def measure(bench: Bench) -> list[Row]:
    from benchmarks.gpu.cases import Shape, all_cases  # needs Triton

    c = bench.size.config
    sizes = (c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
    shape = Shape(*sizes, c["intermediate_size"], c["vocab_size"])
    if bench.device == "cpu":
        shape = Shape(*sizes, c["intermediate_size"], c["vocab_size"], (1, 3), (20, 150), 30, 1)
    seconds = 0.05 if bench.quick else 0.5
    with torch.device(bench.device), torch.inference_mode():
        return [timed(case, seconds, bench.ceilings, bench.device) for case in all_cases(shape)]


def timed(case: Case, seconds: float, ceilings: Ceilings, device: str) -> Row:
    progress(case.name)
    checked = check(case)
    took = _seconds(case, seconds, device)
    free_memory()
    return {
        "kernel": case.name,
        "us": took * 1e6,
        "GB/s": case.bytes / took / 1e9,
        "of copy": case.bytes / took / ceilings.copy,
        "of matmul": case.flops / took / ceilings.matmul if case.flops else None,
        **checked,
    }


def check(case: Case) -> Row:
    """Its error, and whether rows are the same alone; None where that is not promised."""
    error, alone = case.error(), None if case.alone is None else case.alone()
    right = aim(error, at_most=case.limit)
    if alone is False:
        right["met"] = "**no**"
    return {"error": error, "rows alone": alone, **right}


def wrong_ones(rows: Iterable[Row]) -> list[str]:
    return [row["kernel"] for row in rows if row["met"] != "yes"]


def _seconds(case: Case, seconds: float, device: str) -> float:
    """Of one launch."""

    def launches() -> None:
        for copy in range(case.copies):
            case.launch(copy)

    if device == "cpu":  # in Triton's interpreter, which is not timed for its speed
        return seconds_of(launches, device, 1) / case.copies
    return time_graph(launches, case.copies, seconds)


def time_graph(launches: Callable[[], object], number: int, seconds: float) -> float:
    """Seconds for one of the `number` launches: the fastest of five runs that take together about `seconds`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launches()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    repeats = -(-_LAUNCHES // number)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            launches()
    graph.replay()
    once = _replayed(graph, 1)
    replays = max(1, round(seconds / 5 / once))
    return min(_replayed(graph, replays) for _ in range(5)) / repeats / number


def _replayed(graph: torch.cuda.CUDAGraph, times: int) -> float:
    """Seconds for one replay."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times
