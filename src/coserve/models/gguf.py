"""GGUF files, as llama.cpp reads them (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3.

Q4_0, Q4_1 and Q8_0 are taken as they are, other quantised types through int8.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.quantized import BLOCK, QuantizedWeight, pack, quantize, unpack
from coserve.models.config import ModelConfig

_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
_Q4_0, _Q4_1, _Q8_0 = 2, 3, 8
_BLOCK_BYTES = {_Q4_0: 18, _Q4_1: 20, _Q8_0: 34}  # of 32 elements
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_OUTSIDE = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its number of ggml's types, its shape as PyTorch writes it, its first byte."""

    kind: int
    shape: tuple[int, ...]
    start: int

    @property
    def quantized(self) -> bool:
        return self.kind not in _FLOATS


class GgufFile:
    """A GGUF file's tensors, by Hugging Face's names without the leading "model.", read when asked for.

    Raises `ModelError` for a file that is none, or is cut off.
    """

    def __init__(self, path: Path, config: ModelConfig):
        self.path, self._config = path, config
        try:
            content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            header = _Header(content.numpy().data)
        except (OSError, RuntimeError, ValueError, struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is no GGUF file of version 2 or 3, or it is cut off: {error}") from error
        self._content = content
        self._entries = {_hugging_face(name): entry for name, entry in header.tensors.items()}
        # llama.cpp turns neighbours in a head where Hugging Face turns halves: converting reorders these rows.
        self._reordered = header.metadata.get("general.architecture") == "llama"

    @property
    def quantized(self) -> bool:
        return any(entry.quantized for entry in self._entries.values())

    def get(self, name: str) -> Tensor | QuantizedWeight | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        weight = self._read(name, entry)
        heads = self._heads(name) if self._reordered else 0
        return _halves(weight, heads) if heads else weight

    def _heads(self, name: str) -> int:
        """Of a module whose rows are reordered; 0 for others."""
        c = self._config
        module = name.rpartition(".")[0].rpartition(".")[2]
        return {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(module, 0)

    def _read(self, name: str, entry: Entry) -> Tensor | QuantizedWeight:
        if entry.kind in _FLOATS:
            dtype = _FLOATS[entry.kind]
            return self._bytes(name, entry, math.prod(entry.shape) * dtype.itemsize).view(dtype).view(entry.shape)
        rows, columns = entry.shape
        if entry.kind not in _BLOCK_BYTES:
            return self._by_its_package(name, entry)
        size = _BLOCK_BYTES[entry.kind]
        blocks = self._bytes(name, entry, rows * columns // BLOCK * size).view(rows, columns // BLOCK, size)
        scales = _half(blocks, 0)
        if entry.kind == _Q8_0:
            return pack(blocks[..., 2:].contiguous().view(torch.int8).flatten(1), scales, None, bits=8, group=BLOCK)
        if entry.kind == _Q4_1:
            return pack(_nibbles(blocks[..., 4:]), scales, _half(blocks, 2), bits=4, group=BLOCK)
        return pack(_nibbles(blocks[..., 2:]) - 8, scales, None, bits=4, group=BLOCK)

    def _by_its_package(self, name: str, entry: Entry) -> QuantizedWeight:
        """Types with scales of scales, say: their values, in int8 by groups so small that next to nothing is lost."""
        try:
            import gguf
        except ImportError:
            raise ModelError(f"{self.path}: for {name}'s type the package gguf is needed: pip install gguf") from None
        try:
            kind = gguf.GGMLQuantizationType(entry.kind)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            raw = self._bytes(name, entry, math.prod(entry.shape) // block * size)
            values = gguf.dequantize(raw.view(entry.shape[0], -1).numpy(), kind)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ModelError(f"{self.path}: {name} is of a type that cannot be read: {error}") from error
        return quantize(torch.from_numpy(values), 8, BLOCK)

    def _bytes(self, name: str, entry: Entry, count: int) -> Tensor:
        if entry.start + count > self._content.numel():
            raise ModelError(f"{self.path} is cut off: it ends within {name}")
        return self._content[entry.start : entry.start + count]


class _Header:
    """What a file says of itself: metadata (without arrays, which are vocabularies) and tensors by ggml's names."""

    def __init__(self, content: memoryview):
        self._content, self._at = content, 0
        if self._content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, pairs = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}")
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(self._take("I"))
        found = [self._tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        begin = -(-self._at // alignment) * alignment
        self.tensors = {name: Entry(kind, shape, begin + offset) for name, kind, shape, offset in found}

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        sizes = [self._take("Q") for _ in range(self._take("I"))]  # the one that varies fastest first
        return name, self._take("I"), tuple(reversed(sizes)), self._take("Q")

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return value

    def _string(self) -> str:
        length = self._take("Q")
        self._at += length
        if self._at > len(self._content):
            raise ValueError("a text goes on after its end")
        return str(self._content[self._at - length : self._at], "utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_PLAIN[kind])
        of, count = self._take("I"), self._take("Q")
        if of in _PLAIN:
            self._at += count * struct.calcsize(f"<{_PLAIN[of]}")
        else:
            skip: Callable[[], object] = self._string if of == _STRING else lambda: self._value(of)
            for _ in range(count):
                skip()
        return None


def _hugging_face(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    block, _, rest = stem.partition(".")
    index, _, module = rest.partition(".")
    return f"layers.{index}.{_MODULES[module]}.{kind}" if block == "blk" and module in _MODULES else name


def _half(blocks: Tensor, first: int) -> Tensor:
    return blocks[..., first : first + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [rows, blocks, 16] -> int8 [rows, blocks * 32]: the low halves are each block's first sixteen elements."""
    return torch.cat((packed & 15, packed >> 4), -1).view(torch.int8).flatten(1)


def _halves(weight: Tensor | QuantizedWeight, heads: int) -> Tensor | QuantizedWeight:
    """Rows (or a bias) of heads whose even and odd places rotate together, as first and second halves."""
    rows = weight.shape[0]
    order = torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)
    if isinstance(weight, Tensor):
        return weight[order]
    q, scales, mins = unpack(weight)
    return pack(q[order], scales[order], None if mins is None else mins[order], bits=weight.bits, group=weight.group)
