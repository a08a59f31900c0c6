"""Measuring a GPU: what its memory and its matrix products reach, for the roofline to start from.

Kernels are timed as a step runs them, in a captured graph: launched one by one, those of small matrices would measure
the launching.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from coserve.kernels.gpu.formats import QuantizedRows
from coserve.kernels.linear import Weight, linear
from coserve.kernels.quantized import quantize
from coserve.roofline import Chip

_SHAPE = (8192, 4096)  # of the matrices to measure with
_VOLUME = 1 << 30  # bytes of all of them, more than caches hold
_FEW, _MANY = 64, 4096  # rows
_BITS = {"int8": 8, "int4": 4}


def software() -> str:
    """What a measurement depends on, beside the GPU."""
    try:
        triton = version("triton")
    except PackageNotFoundError:  # PyTorch for ROCm brings it under another name
        triton = "unknown"
    return f"torch {torch.__version__}|triton {triton}"


def gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def measure_gpu(device: torch.device, dtype: torch.dtype, form: str, called: str) -> Chip:
    """In about half a second, and what compiling the kernels takes. `dtype`: of the arithmetic; `form`: of the weights,
    "bfloat16", "int4", "float8"; `called`: the name of the two together."""
    with torch.inference_mode():
        matrices = _matrices(device, form)
        volume, elements = sum(w.nbytes for w in matrices), len(matrices) * math.prod(_SHAPE)

        def seconds(rows: int, over: list[Weight]) -> float:
            x = torch.randn(rows, _SHAPE[1], device=device).to(dtype)
            return _best(_captured(device, lambda: [linear(x, w) for w in over]))

        bandwidth = _copy_bandwidth(device)
        dense = torch.randn(_SHAPE, device=device).to(dtype)
        flops = 2 * _MANY * math.prod(_SHAPE) / seconds(_MANY, [dense])
        moving, mixed = seconds(1, matrices), seconds(_FEW, matrices)
    computing = 2 * _FEW * elements / flops
    hidden = (moving + computing - mixed) / min(moving, computing)
    efficiency = min(1.0, volume / moving / bandwidth)
    return Chip(gpu_name(device), called, bandwidth, flops, efficiency, min(1.0, max(0.0, hidden)))


def _matrices(device: torch.device, form: str) -> list[Weight]:
    one = torch.randn(_SHAPE, device=device)
    made: Weight
    if form in _BITS:
        made = QuantizedRows.of(quantize(one, _BITS[form]), device)
    elif form == "float8":
        made = QuantizedRows.in_fp8(one)
    else:
        made = one.to(getattr(torch, form))
    return [_copy(made) for _ in range(max(1, _VOLUME // made.nbytes))]


def _copy(weight: Weight) -> Weight:
    if isinstance(weight, Tensor):
        return weight.clone()
    assert isinstance(weight, QuantizedRows)
    return QuantizedRows(weight.bits, weight.shape, weight.group, weight.data.clone(), weight.scales, weight.mins)


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes/s that a copy reads and writes. Not captured: a graph copies by other means, which are slower."""
    source = torch.zeros(_VOLUME, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


def _captured(device: torch.device, run: Callable[[], object]) -> Callable[[], None]:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()  # compiles and chooses what is chosen once
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        run()
    return graph.replay


def _best(run: Callable[[], object], seconds: float = 0.05, least: int = 3) -> float:
    """Shortest time of repeated runs: what the GPU can do when nothing else disturbs it."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    best, start, runs = math.inf, time.perf_counter(), 0
    while runs < least or time.perf_counter() - start < seconds:
        first.record()
        run()
        last.record()
        last.synchronize()
        best = min(best, first.elapsed_time(last) / 1000)
        runs += 1
    return best
