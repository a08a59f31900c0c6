"""Quantised matrices on disk: made at the first start, mapped at every later one.

A safetensors file whose metadata tells what the matrices were made of, and the sum of its words. A file that was made
of anything else, is cut off or has changed is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.native import PACKING
from coserve.kernels.quantized import QuantizedWeight
from coserve.models.weights import map_with_content

log = logging.getLogger(__name__)

_TYPES = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16"}
_ALIGNMENT = 64  # bytes of a cache line; matrices begin at multiples
_HEADER_BYTES = (1 << 14, 1 << 10)  # set aside for the header: at least, and for each matrix
_HUGE_PAGE = 2 << 20  # bytes; of what is written in such pieces, Linux keeps such pages in its cache, and maps them
_HASHED_BYTES = 1 << 20  # of each file's beginning, where safetensors and GGUF say what is in it
_ABANDONED_SECONDS = 3600.0


def identity(files: Iterable[Path], *made_with: str) -> str:
    """Tells one checkpoint from another by its files' paths, sizes, times and beginnings, without reading them all."""
    digest = hashlib.sha256(repr((PACKING, made_with)).encode())
    for file in sorted(files):
        state = file.stat()
        with file.open("rb") as content:
            digest.update(repr((str(file.resolve()), state.st_size, state.st_mtime_ns)).encode())
            digest.update(content.read(_HASHED_BYTES))
    return digest.hexdigest()


def read(file: Path, wanted: str) -> dict[str, QuantizedWeight] | None:
    """The matrices by name, mapped; None where the file is not there, was made of something else, or is damaged."""
    try:
        with safe_open(file, framework="pt") as header:
            said = header.metadata() or {}
        if said.get("identity") != wanted:
            return None
        tensors, content = map_with_content(file)
        if str(_sum_of_words(content)) != said["sum"]:
            raise ValueError("its content has changed")
        return {name: _weight(name, form, tensors) for name, form in json.loads(said["matrices"]).items()}
    except FileNotFoundError:
        return None
    except (ModelError, SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): it is made again", file, error)
        return None


def write(file: Path, made_of: str, weights: Iterable[tuple[str, QuantizedWeight]], count: int) -> None:
    """Write `count` matrices as they come, holding one at a time. `file` appears whole, or stays as it was.

    Raises `OSError`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in file.parent.glob(f"{file.name}.*.part"):  # by processes that were killed while they wrote
        if time.time() - abandoned.stat().st_mtime > _ABANDONED_SECONDS:
            abandoned.unlink(missing_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb", buffering=0) as out:
            _write(out, made_of, weights, count)
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


Data = bytes | bytearray | memoryview


class _InPieces:
    """Writes to a file from its beginning on, a huge page at a time, and adds up its words."""

    def __init__(self, out: FileIO):
        self._out, self._piece, self.position, self.sum = out, bytearray(), 0, 0

    def write(self, data: Data) -> None:
        rest = memoryview(data)
        self.position += len(rest)
        while len(self._piece) + len(rest) >= _HUGE_PAGE:
            taken = _HUGE_PAGE - len(self._piece)
            self._piece += rest[:taken]
            rest = rest[taken:]
            self.flush()
        self._piece += rest

    def flush(self) -> None:
        if not self._piece:
            return
        self.sum = _wrapped(self.sum + _sum_of_words(torch.frombuffer(self._piece, dtype=torch.uint8)))
        _write_all(self._out, self._piece)
        self._piece.clear()


def _write_all(out: FileIO, data: Data) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[out.write(rest) :]


def _write(file: FileIO, made_of: str, weights: Iterable[tuple[str, QuantizedWeight]], count: int) -> None:
    room = -(-(_HEADER_BYTES[0] + _HEADER_BYTES[1] * count) // _ALIGNMENT) * _ALIGNMENT
    entries: dict[str, Any] = {}
    forms: dict[str, Any] = {}
    small: dict[str, Tensor] = {}
    out = _InPieces(file)

    def add(name: str, tensor: Tensor) -> None:
        first = out.position - room
        out.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [first, out.position - room],
        }

    out.write(bytes(room))
    for name, weight in weights:
        forms[name] = {"bits": weight.bits, "shape": weight.shape, "group": weight.group}
        # Scales come after all the integers, which are multiples of a cache line.
        for part, tensor in weight.tensors().items():
            if part == "data":
                add(f"{name}.data", tensor)
            else:
                small[f"{name}.{part}"] = tensor
    for name, tensor in small.items():
        add(name, tensor)
    out.flush()
    metadata = {"identity": made_of, "sum": str(out.sum), "matrices": json.dumps(forms)}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    file.seek(0)
    _write_all(file, (room - 8).to_bytes(8, "little") + header.ljust(room - 8))


def _weight(name: str, form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    rows, columns = form["shape"]
    data, scales, mins = tensors[f"{name}.data"], tensors[f"{name}.scales"], tensors.get(f"{name}.mins")
    return QuantizedWeight(form["bits"], (rows, columns), form["group"], data, scales, mins)


def _sum_of_words(data: Tensor) -> int:
    """Of bytes that begin where a word does: the sum of all 8-byte words, modulo 2^64. As fast as memory is read, which
    serving is about to do anyway."""
    whole = data.numel() // 8 * 8
    return _wrapped(
        int(data[:whole].view(torch.int64).sum()) + int.from_bytes(data[whole:].numpy().tobytes(), "little")
    )


def _wrapped(total: int) -> int:
    return total % (1 << 64)
