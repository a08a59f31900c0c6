"""Weights on disk: safetensors, one file or shards with an index. Nothing is copied: tensors are views of the files."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.memory import map_file
from coserve.models.files import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def load_weights(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each weight in the directory `path`, memory-mapped, in the checkpoint's own format.

    The layout is checked at once, before the first tensor is read. Raises `ModelError`, naming the file, when
    there are no safetensors, a shard is missing, truncated or corrupt, or a tensor that the index promises is
    not there.
    """
    path = Path(path)
    if (path / SINGLE_FILE).is_file():
        return _read_shard(path / SINGLE_FILE, None)
    if (path / INDEX_FILE).is_file():
        shards = _shards(path)
        return (weight for shard, names in shards.items() for weight in _read_shard(shard, names))
    raise ModelError(_nothing_to_load(path))


def weight_files(path: Path) -> list[Path]:
    """The files that decide which weights a model directory has; for one that `load_weights` takes."""
    return [path / SINGLE_FILE] if (path / SINGLE_FILE).is_file() else [path / INDEX_FILE, *_shards(path)]


def _shards(path: Path) -> dict[Path, list[str]]:
    """Each shard with the names of its tensors, as the index says."""
    index = path / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map")
    shards = defaultdict(list)
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:  # nothing outside the directory
            raise ModelError(f"{index}: {name} is in {file!r}, which is not the name of a file in this directory")
        shards[path / file].append(name)
    missing = sorted(shard.name for shard in shards if not shard.is_file())
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}, which {index.name} lists")
    return dict(shards)


def _read_shard(file: Path, names: Iterable[str] | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors `names` (None: all) of one file."""
    tensors = map_tensors(file)
    for name in sorted(tensors) if names is None else names:
        if name not in tensors:
            raise ModelError(f"{file} lacks the tensor {name}, which {INDEX_FILE} places there")
        yield name, tensors[name]


def map_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, all of them views of one mapping: neighbours there are neighbours here.

    They may be written to; the file stays as it is. Raises `ModelError` if it is truncated or corrupt, or of a type
    that PyTorch lacks.
    """
    return map_with_content(file)[0]


def map_with_content(file: Path) -> tuple[dict[str, Tensor], Tensor]:
    """`map_tensors`, and all that they are views of: the bytes after the header, uint8."""
    try:
        with safe_open(file, framework="pt", device="cpu"):
            pass  # it checks the header: lengths, places, types
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length))
            mapped = map_file(content)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} is truncated or corrupt: {_explain(file, error)}") from error
    header.pop("__metadata__", None)
    data = mapped[8 + length :]
    return {name: _view(file, data, name, **entry) for name, entry in header.items()}, data


def _view(file: Path, data: Tensor, name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    if dtype not in _TYPES:
        raise ModelError(f"{file}: {name} is of the type {dtype}, which cannot be read")
    raw = data[slice(*data_offsets)]
    if not math.prod(shape):
        return torch.empty(shape, dtype=_TYPES[dtype])
    return raw.view(_TYPES[dtype]).view(shape)


def _explain(file: Path, error: Exception) -> str:
    with file.open("rb") as content:
        if content.read(24).startswith(b"version https://git-lfs"):
            return "it is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    return str(error)


def _nothing_to_load(path: Path) -> str:
    if not path.is_dir():
        return f"there is no directory {path}"
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled:
        return (
            f"{path} has its weights only as {pickled[0]}, a pickle that could run code when loaded; "
            f"convert it to safetensors ({SINGLE_FILE})"
        )
    return f"{path} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}"
