"""The table of starts: a checkpoint from the page cache to an engine that answers, sleep and wake.

The engine starts in a process of its own (`start_worker.py`), as a server does. `imports` include the driver's
context. `loaded` is `Engine.from_pretrained`, with its parts below; `awake` is from `wake` to the first token.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, aim
from benchmarks.gpu.model import Config, Shape, full_name, shapes
from benchmarks.models import write_without_weights
from benchmarks.processes import child_reports
from benchmarks.report import Row, progress
from coserve.models.config import ModelConfig

_QUICK_LAYERS = 8
_LIMIT = 120.0  # seconds of a start
_BLOCK = 64 << 20  # bytes of random numbers, repeated
_WANTED = 16e9 / 15  # bytes/s: 16 GB in 15 s


def measure(bench: Bench) -> list[Row]:
    bench.close_engine()
    config = dict(bench.size.config)
    if bench.quick:
        config["num_hidden_layers"] = min(_QUICK_LAYERS, config["num_hidden_layers"])
    directory = Path(tempfile.mkdtemp(dir=bench.scratch, prefix="coserve-start-"))
    try:
        begun = time.perf_counter()
        size = write_large_checkpoint(directory, config)
        progress(f"wrote {size / 1e9:.1f} GB in {time.perf_counter() - begun:.1f} s")
        begun = time.perf_counter()
        task = {"directory": str(directory), "device": bench.device}
        (said,) = child_reports("benchmarks.gpu.start_worker", task, min(_LIMIT, bench.left - 5))
        whole = time.perf_counter() - begun
    finally:
        shutil.rmtree(directory)
    return rows_of(said, size, whole)


def rows_of(said: dict[str, Any], size: int, whole: float) -> list[Row]:
    """`whole`: seconds of the process, from its command to its end."""
    speed = size / said["loaded"]
    rows: list[Row] = [{"part": part, "seconds": seconds} for part, seconds in said.items() if part != "same"]
    rows.append({"part": "whole process", "seconds": whole})
    for row in rows:
        if row["part"] == "loaded":
            row |= {"GB": size / 1e9, "GB/s": speed / 1e9, **aim(speed, at_least=_WANTED)}
            row["aim"] = "16 GB in 15 s"
        if row["part"] == "awake":
            row |= {"aim": "the same tokens", "met": "yes" if said["same"] else "**no**"}
    return rows


def write_large_checkpoint(directory: Path, config: Config) -> int:
    """A directory as on the hub, its weights random and repeated; returns their bytes. Several threads write."""
    write_without_weights(directory, config)
    known = shapes(ModelConfig.from_dict(config))
    shards = _shards([(full_name(name), shape) for name, shape in known.items()])
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    index = {tensor: name for shard, name in zip(shards, names, strict=True) for tensor, _ in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    block = (torch.randn(_BLOCK // 2) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    with ThreadPoolExecutor(len(shards)) as pool:
        return sum(pool.map(lambda shard, name: _write(directory / name, shard, block), shards, names))


Shard = list[tuple[str, Shape]]  # tensors' names and shapes


def _shards(tensors: Shard, number: int = 8) -> list[Shard]:
    """About as large as each other."""
    each, shards, room = sum(_bytes(shape) for _, shape in tensors) / number, [[]], 0.0
    for name, shape in tensors:
        if shards[-1] and room + _bytes(shape) / 2 > each and len(shards) < number:
            shards.append([])
            room = 0.0
        shards[-1].append((name, shape))
        room += _bytes(shape)
    return shards


def _bytes(shape: Shape) -> int:
    return 2 * torch.Size(shape).numel()


def _write(path: Path, shard: Shard, block: bytes) -> int:
    """A safetensors file: the length of the header, the header, the tensors."""
    header, end = {}, 0
    for name, shape in shard:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (end, end + _bytes(shape))}
        end += _bytes(shape)
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for start in range(0, end, len(block)):
            file.write(memoryview(block)[: min(len(block), end - start)])
    return end
