"""The formats that matrices take: what `--weights` says, and how a checkpoint's own become it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coserve.errors import InvalidRequest, ModelError
from coserve.kernels import quantized
from coserve.kernels.device import CPU, is_gpu
from coserve.kernels.gpu import formats as gpu_formats
from coserve.kernels.gpu.formats import FP8_MULTIPLE, QuantizedRows
from coserve.kernels.linear import Weight
from coserve.kernels.quantized import PANEL, QuantizedWeight, quantize
from coserve.models.config import ModelConfig
from coserve.models.dtype import auto_dtype, computing_dtype, weight_dtype
from coserve.models.matrices import HEAD, Matrix

WEIGHTS = ("auto", "bf16", "int8", "int4", "fp8")
_ELEMENTS_AT_ONCE = 1 << 22  # quantised in the caches; a large matrix at once would take more memory than the model


@dataclass(frozen=True)
class WeightFormats:
    """Which format each matrix takes, and which the arithmetic with them.

    weights: "auto" is the checkpoint's own; "bf16" bfloat16; "int8" symmetric, by row; "int4" symmetric, by groups of
    64 along a row; "fp8" 8-bit floats, by row, on a GPU only. Of these two the output matrix is in int8, whose errors
    nothing after it evens out.
    """

    weights: str
    dtype: torch.dtype  # of the arithmetic
    quantized: bool  # whether any matrix is in fewer bits than floats have

    @classmethod
    def choose(
        cls,
        config: ModelConfig,
        weights: str,
        dtype: torch.dtype | None,
        stored_quantized: bool,
        device: torch.device = CPU,
    ) -> WeightFormats:
        """`dtype` None: what suits. `stored_quantized`: the checkpoint's matrices are of integers.

        Raises `InvalidRequest` for `weights` that is none of `WEIGHTS`, for 8-bit floats on a CPU, and for bfloat16
        with integers there.
        """
        if weights not in WEIGHTS:
            raise InvalidRequest(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.", param="weights")
        if weights == "bf16" or (weights == "auto" and not stored_quantized):
            own = auto_dtype(config, device) if weights == "auto" else computing_dtype(device)
            return cls(weights, dtype or own, quantized=False)
        if is_gpu(device):
            return cls(weights, dtype or torch.bfloat16, quantized=True)
        if weights == "fp8":
            raise InvalidRequest(
                "8-bit floats need a GPU; on a CPU int8 takes as many bytes and is more exact.", param="weights"
            )
        if dtype not in (None, torch.float32):
            raise InvalidRequest(
                "on a CPU matrices of integers are computed with in float32, not in bfloat16: leave dtype at auto, "
                "or choose the weights bf16.",
                param="dtype",
            )
        return cls(weights, torch.float32, quantized=True)

    def matrix(self, matrix: Matrix, modules: Sequence[Weight]) -> Weight:
        """A matrix from its modules as the checkpoint has them. Raises `ModelError` if the format does not take it."""
        if self.weights == "fp8" and matrix.name != HEAD:
            return _in_fp8(matrix, torch.cat([self.dense(module) for module in modules]))
        bits = self._bits(matrix)
        if bits is None:
            return _stacked([self.dense(m) if isinstance(m, Tensor) or not self.quantized else m for m in modules])
        kept = [isinstance(m, QuantizedWeight) and m.bits == bits for m in modules]
        return _stacked([m if keep else _quantized(m, bits) for m, keep in zip(modules, kept, strict=True)])

    def dense(self, weight: Weight) -> Tensor:
        """A matrix of floats, in the format that the kernels read."""
        plain = floats(weight)
        if self.weights == "bf16" or self.quantized:
            plain = plain.to(torch.bfloat16)
        return plain.to(weight_dtype(self.dtype, plain.dtype, plain.device))

    def _bits(self, matrix: Matrix) -> int | None:
        if self.weights == "int4":
            return 8 if matrix.name == HEAD else 4
        return 8 if self.weights in ("int8", "fp8") else None


def floats(weight: Weight) -> Tensor:
    """The matrix itself where it is of floats, else in float32."""
    if isinstance(weight, QuantizedWeight):
        return quantized.dequantize(weight)
    return gpu_formats.dequantize(weight) if isinstance(weight, QuantizedRows) else weight


def _in_fp8(matrix: Matrix, weight: Tensor) -> QuantizedRows:
    if any(size % FP8_MULTIPLE for size in weight.shape):
        raise ModelError(
            f"{matrix.name} is {list(weight.shape)}; in 8-bit floats both must be multiples of {FP8_MULTIPLE}: "
            "choose the weights int8 or bf16."
        )
    return QuantizedRows.in_fp8(weight)


def _quantized(weight: Weight, bits: int) -> QuantizedWeight:
    dense = floats(weight)
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
