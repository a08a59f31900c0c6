"""Matrix products whose rows do not know their neighbours, and LoRA on top of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels.native import kernel, pointer

# Float32 BLAS works through rows in fours; what is left over takes another path, with another order of summation.
_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] @ weight [out, in].T + bias [out]. A row's result does not depend on how many rows there are.

    Float32 rows may meet bfloat16 weights: those are widened on their way into the product. Differentiable.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias, True)
    return _product(x, weight, bias)


def linear_gradient_only(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stands for `linear` where a layer is recomputed for its gradients and nobody reads the output: it is zero."""
    return _Linear.apply(x, weight, bias, False)


class _Linear(torch.autograd.Function):
    """The product, or zeros for it; the true gradients backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, wanted: bool) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.bias = bias is not None and bias.requires_grad
        return _product(x, weight, bias) if wanted else x.new_zeros(1).expand(x.shape[0], weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dx = _input_gradient(grad, weight) if ctx.needs_input_grad[0] else None
        dw = (grad.t() @ x).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dw, grad.sum(0) if ctx.bias else None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    run = kernel("linear", weight.dtype) if x.dtype == torch.float32 else None
    if run is None:
        return _product_by_torch(x, weight.to(x.dtype), bias)
    x, weight = x.contiguous(), weight.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    run(pointer(x), pointer(weight), pointer(bias), pointer(y), x.shape[0], *weight.shape)
    return y


def _product_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.shape[0]
    if rows % _ROWS and x.dtype == torch.float32:
        return F.linear(F.pad(x, (0, 0, 0, -rows % _ROWS)), weight, bias)[:rows]
    return F.linear(x, weight, bias)


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """grad [rows, out] @ weight [out, in]."""
    run = kernel("linear_input_gradient", weight.dtype) if grad.dtype == torch.float32 else None
    if run is None:
        return grad @ weight.to(grad.dtype)
    grad, weight = grad.contiguous(), weight.contiguous()
    dx = grad.new_empty(grad.shape[0], weight.shape[1])
    run(pointer(grad), pointer(weight), pointer(dx), grad.shape[0], *weight.shape)
    return dx


@dataclass(frozen=True)
class LoraWeights:
    """One module's adapter: x -> scaling * (x @ a.T) @ b.T with a [r, in], b [out, r] (Hu et al., 2021)."""

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True)
class LoraLayer:
    """A layer's adapters by module name ("q_proj", ...). `dropout(module, x)` drops from the adapter's input."""

    modules: Mapping[str, LoraWeights]
    dropout: Callable[[str, Tensor], Tensor] | None = None

    def delta(self, module: str, x: Tensor) -> Tensor | None:
        lora = self.modules.get(module)
        if lora is None:
            return None
        if self.dropout is not None:
            x = self.dropout(module, x)
        return linear(linear(x, lora.a), lora.b) * lora.scaling


@dataclass(frozen=True)
class LoraRows:
    """Rows [start, end) of a batch, and the adapter that they go through."""

    start: int
    end: int
    layer: LoraLayer


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parts: Sequence[tuple[str, int, int]],
    loras: Sequence[LoraRows],
    *,
    gradient_only: bool = False,
) -> Tensor:
    """A linear layer of one or more modules side by side, with adapters on some of its rows.

    `parts` names each module's columns of the output: (name, first, last + 1).
    """
    y = linear_gradient_only(x, weight, bias).clone() if gradient_only else linear(x, weight, bias)
    for rows in loras:
        inputs = x[rows.start : rows.end]
        for name, first, last in parts:
            delta = rows.layer.delta(name, inputs)
            if delta is not None:
                y[rows.start : rows.end, first:last] += delta
    return y
