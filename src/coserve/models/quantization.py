"""The formats that matrices take: what `--weights` says, and how a checkpoint's own become it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.errors import InvalidRequest
from coserve.kernels import quantized
from coserve.kernels.linear import Weight
from coserve.kernels.quantized import PANEL, QuantizedWeight, dequantize, quantize
from coserve.models.config import ModelConfig
from coserve.models.dtype import auto_dtype, computing_dtype, weight_dtype
from coserve.models.matrices import HEAD, Matrix

WEIGHTS = ("auto", "bf16", "int8", "int4")
_ELEMENTS_AT_ONCE = 1 << 22  # quantised in the caches; a large matrix at once would take more memory than the model


@dataclass(frozen=True)
class WeightFormats:
    """Which format each matrix takes, and which the arithmetic with them.

    weights: "auto" is the checkpoint's own; "bf16" bfloat16; "int8" symmetric, by row; "int4" symmetric, by groups of
    64 along a row, with the output matrix in int8, whose errors nothing after it evens out.
    """

    weights: str
    dtype: torch.dtype  # of the arithmetic
    quantized: bool  # whether any matrix is of integers

    @classmethod
    def choose(
        cls, config: ModelConfig, weights: str, dtype: torch.dtype | None, stored_quantized: bool
    ) -> WeightFormats:
        """`dtype` None: what suits. `stored_quantized`: the checkpoint's matrices are of integers.

        Raises `InvalidRequest` for `weights` that is none of `WEIGHTS`, and for bfloat16 with integers.
        """
        if weights not in WEIGHTS:
            raise InvalidRequest(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.", param="weights")
        if weights == "bf16" or (weights == "auto" and not stored_quantized):
            own = auto_dtype(config) if weights == "auto" else computing_dtype()
            return cls(weights, dtype or own, quantized=False)
        if dtype not in (None, torch.float32):
            raise InvalidRequest(
                "matrices of integers are computed with in float32, not in bfloat16: leave dtype at auto, "
                "or choose the weights bf16.",
                param="dtype",
            )
        return cls(weights, torch.float32, quantized=True)

    def matrix(self, matrix: Matrix, modules: Sequence[Weight]) -> Weight:
        """A matrix from its modules as the checkpoint has them."""
        bits = self._bits(matrix)
        if bits is None:
            return _stacked([self.dense(m) if isinstance(m, Tensor) or not self.quantized else m for m in modules])
        kept = [isinstance(m, QuantizedWeight) and m.bits == bits for m in modules]
        return _stacked([m if keep else _quantized(m, bits) for m, keep in zip(modules, kept, strict=True)])

    def dense(self, weight: Weight) -> Tensor:
        """A matrix of floats, in the format that the kernels read."""
        plain = dequantize(weight) if isinstance(weight, QuantizedWeight) else weight
        if self.weights == "bf16" or self.quantized:
            plain = plain.to(torch.bfloat16)
        return plain.to(weight_dtype(self.dtype, plain.dtype))

    def _bits(self, matrix: Matrix) -> int | None:
        if self.weights == "int4":
            return 8 if matrix.name == HEAD else 4
        return 8 if self.weights == "int8" else None


def _quantized(weight: Weight, bits: int) -> QuantizedWeight:
    dense = dequantize(weight) if isinstance(weight, QuantizedWeight) else weight
    rows = max(PANEL, _ELEMENTS_AT_ONCE // dense.shape[1] // PANEL * PANEL)
    return quantized.cat([quantize(some, bits) for some in dense.split(rows)])


def _stacked(modules: Sequence[Weight]) -> Weight:
    """One below the other. Where a checkpoint has them in different formats, in int8, which loses next to nothing."""
    if len(modules) == 1:
        return modules[0]
    floats = [m for m in modules if isinstance(m, Tensor)]
    integers = [m for m in modules if isinstance(m, QuantizedWeight)]
    if not integers:
        return _one_below_the_other(floats)
    if floats or len({(m.bits, m.group, m.mins is None) for m in integers}) > 1:
        integers = [_quantized(m, 8) for m in modules]
    return quantized.cat(integers)


def _one_below_the_other(parts: Sequence[Tensor]) -> Tensor:
    """A view where they lie so already, as gate and up do in a mapped checkpoint; else a copy."""
    first = parts[0]
    end, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    for part in parts:
        if part.untyped_storage().data_ptr() != memory or part.storage_offset() != end or not part.is_contiguous():
            return torch.cat(list(parts))
        end += part.numel()
    return first.as_strided((sum(part.shape[0] for part in parts), first.shape[1]), first.stride())
