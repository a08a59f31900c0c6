"""AWQ checkpoints in the "gemm" order, as AutoAWQ writes them (Lin et al., 2023).

A module [out, in] is `qweight` int32 [in, out / 8], packed along its columns in an order of its own; `qzeros` int32
[groups, out / 8] likewise; and `scales` float16 [groups, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.quantized import QuantizedWeight
from coserve.models.packed import from_zero_points, group_of, unpack_words

_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word belongs to, the lowest first


@dataclass(frozen=True)
class Awq:
    group_size: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Awq:
        """`config.json`'s `quantization_config`. Raises `ModelError` for what is not supported."""
        bits, version = config.get("bits"), str(config.get("version", "gemm")).lower()
        if bits != _BITS or version != "gemm":
            raise ModelError(f"config.json: awq with {bits!r} bits, {version!r}, is not supported; 4 bits, 'gemm' is")
        return cls(config.get("group_size", 128))

    def read(self, tensors: Mapping[str, Tensor], module: str) -> QuantizedWeight | None:
        """A module's weight; None where it is not quantised."""
        if f"{module}.qweight" not in tensors:
            return None
        q = unpack_words(tensors[f"{module}.qweight"], _BITS, _ORDER).t()
        zeros = unpack_words(tensors[f"{module}.qzeros"], _BITS, _ORDER).t()
        group = group_of(self.group_size, q.shape[1], "awq")
        return from_zero_points(q, tensors[f"{module}.scales"].t(), zeros, bits=_BITS, group=group)
