"""Compiles every kernel for a GPU that is not there, as its wrapper launches it at the shapes of Llama 3.1 8B.

`python -m tests.kernels.gpu.compiled cuda` (or `hip`) prints a line of JSON for each launch: the kernel, the bytes of
shared memory and, of CUDA, the registers of a thread and the bytes that did not fit into them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class _Absent:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(target: GPUTarget, calls: Iterator[Callable[[], Any]]) -> Iterator[dict[str, Any]]:
    found: list[tuple[str, Any]] = []
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((self.__name__, launch(self, *args, grid=grid, warmup=True, **options)))

    driver.set_active(_Absent(target))
    JITFunction.run = compile_only
    for call in calls:
        call()
        yield from (_report(name, kernel) for name, kernel in found)
        found.clear()


def _report(name: str, kernel: Any) -> dict[str, Any]:
    report = {"kernel": name, "shared": kernel.metadata.shared}
    if "cubin" in kernel.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [_CUOBJDUMP, "--dump-resource-usage", file.name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        report["registers"] = int(re.search(r"REG:(\d+)", said)[1])
        report["spilled"] = int(re.search(r"STACK:(\d+)", said)[1])
    return report


def calls() -> Iterator[Callable[[], Any]]:
    yield from _attention()
    yield from _rows()
    yield from _rope()
    yield from _products()
    yield from _lora()
    yield from _penalties()
    yield from _sampling()
    yield from _fp8()
    yield from _experts()
    yield from _dropout()
    yield from _decode()


def _attention() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu.attention import rope_and_attend
    from tests.kernels.gpu import test_attention as attention

    everything = {"window": 128, "soft_cap": 50.0, "sinks": torch.zeros(32)}
    for cache_dtype, options in ((torch.bfloat16, {}), (torch.float8_e4m3fn, everything)):
        case = attention.make(32, 8, 128, [(1000, 1), (0, 40)], torch.bfloat16, cache_dtype=cache_dtype)
        yield lambda case=case, options=options: attention.run(case, 32, 8, **options)
    qkv, *where = attention.make(32, 8, 128, [(1000, 1)] * 64, torch.bfloat16)
    yield lambda: attention.run((qkv, *where), 32, 8)
    qkv, *where = attention.make(32, 8, 128, [(1000, 1)], torch.bfloat16)
    angle, norm = torch.zeros(2000, 64), torch.zeros(128, dtype=torch.bfloat16)
    for norms in ((norm, norm), (None, None)):
        yield lambda norms=norms: rope_and_attend(qkv, *norms, 1e-5, angle, angle, *where, 0, 32, 8, 0.1)


def _rows() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu import rows

    x, weight = (torch.zeros(*shape, dtype=torch.bfloat16) for shape in ((2, 4096), (4096,)))
    yield lambda: rows.rms_norm(x, weight, 1e-5)
    yield lambda: rows.rms_norm_gradient(x, weight, x, 1e-5)
    yield lambda: rows.silu_and_mul(x)
    yield lambda: rows.silu_and_mul_gradient(x, x[:, :2048])


def _rope() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu import rope
    from tests.kernels.gpu.test_attention import make

    angle, norm = torch.zeros(64, 64), torch.zeros(128, dtype=torch.bfloat16)
    for cache_dtype in (torch.bfloat16, torch.float8_e4m3fn):
        qkv, *where = make(32, 8, 128, [(20, 1)], torch.bfloat16, cache_dtype=cache_dtype)
        for norms in ((norm, norm), (None, None)):
            yield lambda a=(qkv, *norms, 1e-6, angle, angle, *where, 0, 32, 8): rope.rope_and_store(*a)
    yield lambda: rope.rotate(torch.zeros(2, 32, 128, dtype=torch.bfloat16), angle, angle)


def _products() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu import products
    from coserve.kernels.gpu.formats import QuantizedRows
    from tests.kernels.gpu.test_products import matrix

    bf16 = {"dtype": torch.bfloat16}
    packed = [matrix(*kind, 256, 4096)[0] for kind in ((8, None, True), (4, 128, False), (4, 64, True), (4, 32, True))]
    wide = torch.zeros(17408, 64, **bf16)
    yield lambda: products.gated_product(torch.zeros(1, 64, **bf16), wide)
    for weight in (torch.zeros(256, 4096, **bf16), QuantizedRows.in_fp8(torch.zeros(256, 4096)), *packed):
        for rows in (1, 32, 64):
            x, residual = torch.zeros(rows, 4096, **bf16), torch.zeros(rows, 256, **bf16)
            yield lambda a=(x, weight, None, residual): products.product(*a)
            yield lambda a=(x, weight): products.gated_product(*a)
        yield lambda weight=weight: products.product(torch.zeros(64, 4096), weight)
    yield lambda weight=weight: products.dequantize(weight, torch.bfloat16)


def _lora() -> Iterator[Callable[[], Any]]:
    from coserve.kernels import LoraLayer, LoraWeights
    from coserve.kernels.gpu import lora

    bf16 = {"dtype": torch.bfloat16}
    for rank in (16, 64):
        layer = LoraLayer({"q_proj": LoraWeights(torch.zeros(rank, 4096, **bf16), torch.zeros(256, rank, **bf16), 1.0)})
        stack = lora.LoraStack.of([layer], [("q_proj", 0, 256)], 4096, torch.bfloat16, "cpu")
        rows = (torch.zeros(3, 256, **bf16), torch.zeros(3, 4096, **bf16))
        yield lambda rows=rows, stack=stack: lora.add_lora(*rows, stack, lora.lora_tiles([(0, 3, 0)], "cpu"))


def _penalties() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu.penalties import Penalties

    table, slots = Penalties.empty(64, 128256, "cpu"), torch.zeros(2, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float32):
        yield lambda dtype=dtype: table.shape(torch.zeros(2, 128256, dtype=dtype), slots)
    yield lambda: table.count(slots, torch.zeros(2, dtype=torch.int64))


def _sampling() -> Iterator[Callable[[], Any]]:
    from coserve.engine import SamplingParams
    from tests.kernels.gpu.test_sampling import drawn

    for dtype in (torch.bfloat16, torch.float32):  # as the model gives them, and with penalties
        yield lambda dtype=dtype: drawn(torch.zeros(2, 128256, dtype=dtype), [SamplingParams()] * 2, [0.5] * 2)


def _fp8() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu import fp8, products
    from coserve.kernels.gpu.formats import FP8, QuantizedRows

    x = torch.zeros(2, 4096, dtype=torch.bfloat16)
    yield lambda: fp8.quantize_rows(x, QuantizedRows.in_fp8(torch.zeros(16, 4096)))
    blocks = QuantizedRows.of_blocks(torch.zeros(128, 4096).to(FP8), torch.ones(1, 32))
    yield lambda: products.product(x, blocks)
    yield lambda: products.dequantize(blocks, torch.bfloat16)


def _experts() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu import experts

    x, matrices = torch.zeros(2, 1024, dtype=torch.bfloat16), torch.zeros(8, 128, 1024, dtype=torch.bfloat16)
    assignment = experts.Assignment.of(torch.tensor([[0, 3], [7, 1]]), 8)
    yield lambda: experts.grouped_product(x, matrices, assignment, gather=True)
    yield lambda: experts.combine(torch.zeros(4, 128, dtype=torch.bfloat16), torch.ones(2, 2), assignment)


def _dropout() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu.dropout import dropout

    yield lambda: dropout(torch.zeros(2, 4096, dtype=torch.bfloat16), 0.1, 1 << 31, 5)


def _decode() -> Iterator[Callable[[], Any]]:
    from coserve.kernels.gpu import decode

    rows = decode.DecodeRows.idle(64, 1000, 7, "cpu")
    yield lambda: decode.begin(rows, 64)
    yield lambda: decode.end(rows, torch.zeros(64, dtype=torch.int64))


if __name__ == "__main__":
    for line in compiled(TARGETS[sys.argv[1]], calls()):
        print(json.dumps(line), flush=True)
