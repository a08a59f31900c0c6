"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them (Frantar et al., 2022).

A module [out, in] is `qweight` int32 [in * bits / 32, out], packed along its rows; `scales` float16 [groups, out];
`qzeros` int32 [groups, out * bits / 32], each one less than the zero point in the first version of the format; and
`g_idx` int32 [in], each input's group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels.quantized import QuantizedWeight, quantize
from coserve.models.packed import SUPPORTED_BITS, from_zero_points, group_of, unpack_words


@dataclass(frozen=True)
class Gptq:
    bits: int
    group_size: int
    zero_offset: int  # what a stored zero point lacks

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Gptq:
        """`config.json`'s `quantization_config`. Raises `ModelError` for what is not supported."""
        bits, form = config.get("bits"), config.get("checkpoint_format") or "gptq"
        if bits not in SUPPORTED_BITS:
            raise ModelError(f"config.json: gptq with {bits!r} bits is not supported; 4 and 8 are")
        if form not in ("gptq", "gptq_v2"):
            raise ModelError(f"config.json: gptq's checkpoint_format {form!r} is not supported; gptq and gptq_v2 are")
        return cls(bits, config.get("group_size", 128), 1 if form == "gptq" else 0)

    def read(self, tensors: Mapping[str, Tensor], module: str) -> QuantizedWeight | None:
        """A module's weight; None where it is not quantised."""
        if f"{module}.qweight" not in tensors:
            return None
        q = unpack_words(tensors[f"{module}.qweight"].t(), self.bits)
        scales = tensors[f"{module}.scales"].t()
        zeros = unpack_words(tensors[f"{module}.qzeros"], self.bits).t().to(torch.int16) + self.zero_offset
        rows, columns = q.shape
        group = group_of(self.group_size, columns, "gptq")
        groups = tensors.get(f"{module}.g_idx")
        if groups is None or torch.equal(groups.long(), torch.arange(columns) // group):
            return from_zero_points(q, scales, zeros[:rows], bits=self.bits, group=group)
        # Quantised in the order of activations ("desc_act"): its groups are no runs of columns. int8 by row has room.
        index = groups.long()
        return quantize(scales.float()[:, index] * (q - zeros[:rows][:, index]), 8)
