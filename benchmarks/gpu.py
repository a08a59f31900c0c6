"""The GPU kernels: are they right, and what share of the memory bandwidth or of a matrix product's rate do they reach?

Each kernel, at the shapes of Llama 3.1 8B with random numbers, is compared with float64 and, where coserve promises
that a row's result does not depend on its company, some rows by themselves with the same rows in it, to the bit.
Launches are timed as a CUDA graph, from memory and not from the cache: each has another copy of the inputs.

    of copy = (bytes that a launch must read and write) / seconds / (those of a copy from device to device)
    of matmul = FLOPs / seconds / (those of a bfloat16 product of two matrices 8192 x 8192)

both measured in the same run. It exits with status 1 if a kernel is wrong, or if there is no GPU.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import Row, print_table, progress, write_json

if TYPE_CHECKING:
    from benchmarks.gpu_cases import Case

_COPIED = 1 << 30  # bytes
_MATMUL = 8192
_LAUNCHES = 20  # in a graph, at least


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="check and time the GPU kernels")
    parser.add_argument("--quick", action="store_true", help="about a minute: shorter timings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a GPU that PyTorch can use (CUDA or ROCm), and there is none here.")
    from benchmarks.gpu_cases import Shape, all_cases  # needs Triton

    machine = describe_machine() | {"gpu": torch.cuda.get_device_name()}
    print(f"{machine['gpu']}; {machine_line(machine)}\n")
    seconds = 0.05 if options.quick else 0.5
    copied, multiplied = copy_bandwidth(seconds), matmul_rate(seconds)
    print(f"copy from device to device: {copied / 1e9:.0f} GB/s; bfloat16 product: {multiplied / 1e12:.0f} TFLOP/s\n")
    with torch.device("cuda"), torch.inference_mode():
        rows = [measure(case, seconds, copied, multiplied) for case in all_cases(Shape())]
    print_table(rows)
    if options.json:
        write_json(options.json, machine, rows, copy_bytes_per_s=copied, matmul_flops=multiplied)
    if wrong := wrong_ones(rows):
        sys.exit(f"wrong: {', '.join(wrong)}")


def measure(case: Case, seconds: float, copied: float, multiplied: float) -> Row:
    progress(case.name)
    checked = check(case)
    took = time_graph(lambda: [case.launch(i) for i in range(case.copies)], case.copies, seconds)
    torch.cuda.empty_cache()
    return {
        "kernel": case.name,
        "us": took * 1e6,
        "GB/s": case.bytes / took / 1e9,
        "of copy": case.bytes / took / copied,
        "of matmul": case.flops / took / multiplied if case.flops else None,
        **checked,
    }


def check(case: Case) -> Row:
    """Its error, and whether rows are the same alone; None where that is not promised."""
    return {"error": case.error(), "limit": case.limit, "rows alone": None if case.alone is None else case.alone()}


def wrong_ones(rows: Iterable[Row]) -> list[str]:
    return [row["kernel"] for row in rows if not row["error"] <= row["limit"] or row["rows alone"] is False]


def copy_bandwidth(seconds: float) -> float:
    """Bytes per second, read and written."""
    source, target = (torch.empty(_COPIED, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * _COPIED / time_graph(lambda: target.copy_(source), 1, seconds)


def matmul_rate(seconds: float) -> float:
    """FLOP/s in bfloat16."""
    a, b = (torch.randn(_MATMUL, _MATMUL, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * _MATMUL**3 / time_graph(lambda: a @ b, 1, seconds)


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


if __name__ == "__main__":
    main()
