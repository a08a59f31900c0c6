"""compressed-tensors checkpoints, as llm-compressor and vLLM's users write them, with symmetric integer weights.

A module [out, in] is, as "pack-quantized", `weight_packed` int32 [out, in * bits / 32], packed along its rows, with the
middle added; as "int-quantized", `weight` int8; and in both `weight_scale` [out, groups].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.quantized import QuantizedWeight
from coserve.models.packed import SUPPORTED_BITS, from_zero_points, group_of, unpack_words

FORMATS = ("pack-quantized", "int-quantized")


@dataclass(frozen=True)
class CompressedTensors:
    bits: int
    group_size: int  # -1: the whole row

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CompressedTensors:
        """`config.json`'s `quantization_config`. Raises `ModelError` for what is not supported."""
        form = config.get("format")
        if form not in FORMATS:
            raise ModelError(f"config.json: compressed-tensors {form!r} is not supported; {', '.join(FORMATS)} are")
        schemes = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
        if not schemes or any(s != schemes[0] for s in schemes) or not _supported(schemes[0]):
            raise ModelError(
                "config.json: of compressed-tensors, one scheme of symmetric integers with 4 or 8 bits is supported, "
                "without an order of activations"
            )
        return cls(schemes[0]["num_bits"], schemes[0].get("group_size") or -1)

    def read(self, tensors: Mapping[str, Tensor], module: str) -> QuantizedWeight | None:
        """A module's weight; None where it is not quantised."""
        scales = tensors.get(f"{module}.weight_scale")
        if scales is None:
            return None
        packed = tensors.get(f"{module}.weight_packed")
        if packed is None:
            q = tensors[f"{module}.weight"].to(torch.int16) + 128
            group = group_of(self.group_size, q.shape[1], "compressed-tensors")
            return from_zero_points(q, scales, None, bits=8, group=group)
        _, columns = tensors[f"{module}.weight_shape"].tolist()
        q = unpack_words(packed, self.bits)[:, :columns]
        group = group_of(self.group_size, columns, "compressed-tensors")
        return from_zero_points(q, scales, None, bits=self.bits, group=group)


def _supported(scheme: Mapping[str, Any]) -> bool:
    whole_runs = scheme.get("actorder") in (None, False, "weight", "static")
    integers = scheme.get("type", "int") == "int" and scheme.get("num_bits") in SUPPORTED_BITS
    return integers and whole_runs and bool(scheme.get("symmetric", True))
