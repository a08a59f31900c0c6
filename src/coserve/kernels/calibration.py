"""Measuring this machine: what its memory and its matrix products reach, for the roofline to start from."""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from coserve.kernels.device import CPU, is_gpu
from coserve.kernels.linear import linear
from coserve.kernels.memory import beyond_caches, huge_copy
from coserve.kernels.native import build, library, pointer
from coserve.kernels.quantized import QuantizedWeight, quantize
from coserve.roofline import Chip

CpuWeight = torch.Tensor | QuantizedWeight
WeightFormat = torch.dtype | str  # a PyTorch number format or its name, "int8" or "int4"
_BITS = {"int8": 8, "int4": 4}
_ELEMENTS = 4096 * 2048  # of a matrix to measure with


def _best(run: Callable[[], object], seconds: float = 0.15, least: int = 3) -> float:
    """Shortest time of repeated runs: what the chip can do when nothing else disturbs it."""
    best, start, runs = math.inf, time.perf_counter(), 0
    while runs < least or time.perf_counter() - start < seconds:
        t = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - t)
        runs += 1
    return best


def measure_bandwidth() -> float:
    """Bytes/s of a streaming read by all of PyTorch's threads, from a buffer too large for any cache."""
    buffer = huge_copy(torch.ones(1, dtype=torch.int64).expand(beyond_caches() // 8))
    lib = library()
    if lib is None:
        return buffer.nbytes / _best(lambda: buffer.sum())
    lib.coserve_stream_read.restype = ctypes.c_uint64
    words, count = pointer(buffer), ctypes.c_int64(buffer.numel())
    return buffer.nbytes / _best(lambda: lib.coserve_stream_read(words, count))


def _weights(form: WeightFormat) -> list[CpuWeight]:
    """Matrices [4096, 2048] of that format, more than caches hold."""
    bits = _BITS.get(str(form))
    one = torch.randn(4096, 2048)
    made = quantize(one, bits) if bits else one.to(_dtype(form))
    return [_copy(made) for _ in range(-(-beyond_caches() // made.nbytes))]


def _dtype(form: WeightFormat) -> torch.dtype:
    return form if isinstance(form, torch.dtype) else getattr(torch, form)


def _copy(weight: CpuWeight) -> CpuWeight:
    if isinstance(weight, torch.Tensor):
        return huge_copy(weight)
    return replace(weight, data=huge_copy(weight.data))


def measure_chip(dtype: torch.dtype, weights: WeightFormat | None = None) -> Chip:
    """Measure this machine in about a second: bandwidth, matrix FLOP/s, and how well the two overlap.

    `dtype` is what products are computed in; `weights` the format of the weights, if another.
    """
    form = weights or dtype
    bandwidth = measure_bandwidth()
    with torch.inference_mode():
        matrices = _weights(form)
        volume = sum(w.nbytes for w in matrices)

        def seconds(rows: int, over: list[CpuWeight]) -> float:
            x = torch.randn(rows, 2048).to(dtype)
            return _best(lambda: [linear(x, w) for w in over])

        flops = 2 * 512 * _ELEMENTS / seconds(512, matrices[:1])
        moving, mixed, rows = seconds(1, matrices), seconds(32, matrices), 32
    efficiency = min(1.0, volume / moving / bandwidth)
    computing = 2 * rows * len(matrices) * _ELEMENTS / flops
    hidden = (moving + computing - mixed) / min(moving, computing)
    name = f"{platform.processor() or platform.machine()} ({torch.get_num_threads()} threads)"
    return Chip(
        _cpu_name() or name,
        format_name(dtype, form),
        bandwidth,
        flops,
        efficiency,
        min(1.0, max(0.0, hidden)),
    )


def measure_few_rows(dtype: torch.dtype, weights: WeightFormat | None = None) -> tuple[float, float]:
    """FLOP/s of matrix products with as few rows as a decode step has, where other kernels work than with many; and
    the share of the smaller of reading and computing that hides behind the larger."""
    with torch.inference_mode():
        matrices = _weights(weights or dtype)

        def seconds(rows: int) -> float:
            x = torch.randn(rows, 2048).to(dtype)
            return _best(lambda: [linear(x, w) for w in matrices])

        one, some, more = seconds(1), seconds(16), seconds(32)
    row = max((more - some) / 16, 1e-12)
    hidden = (one + 16 * row - some) / min(one, 16 * row)
    return 2 * len(matrices) * _ELEMENTS / row, min(1.0, max(0.0, hidden))


def format_name(dtype: torch.dtype, weights: WeightFormat) -> str:
    """ "float32", or "bfloat16 in float32" for bfloat16 weights whose products are computed in float32."""
    names = [str(form).removeprefix("torch.") for form in (weights, dtype)]
    return names[0] if names[0] == names[1] else " in ".join(names)


def _cpu_name() -> str:
    """The processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model}, {torch.get_num_threads()} threads" if model else ""


def load_or_measure_chip(
    cache: Path | None, dtype: torch.dtype, weights: WeightFormat | None = None, device: torch.device = CPU
) -> Chip:
    """The chip as measured on an earlier start of the same machine and software, else measured now and kept."""
    wanted = format_name(dtype, weights or dtype)
    if is_gpu(device):
        from coserve.kernels.gpu import calibration as gpu

        key = f"{gpu.gpu_name(device)}|{gpu.software()}|{wanted}"
        form = str(weights or dtype).removeprefix("torch.")
        return _kept(cache, key, lambda: gpu.measure_gpu(device, dtype, form, wanted))
    software = f"torch {torch.__version__}|kernels {build()}"
    key = f"{_cpu_name()}|{torch.get_num_threads()}|{software}|{wanted}"
    return _kept(cache, key, lambda: measure_chip(dtype, weights))


def _kept(cache: Path | None, key: str, measure: Callable[[], Chip]) -> Chip:
    """What the file `cache` has under the key, else measured now and put there."""
    if cache is None:
        return measure()
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if isinstance(known.get(key), dict):
        try:
            return Chip(**known[key])
        except TypeError:
            pass  # written by another version
    chip = measure()
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = cache.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({**known, key: asdict(chip)}, indent=1))
    part.replace(cache)
    return chip
