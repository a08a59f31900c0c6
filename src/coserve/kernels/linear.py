"""Matrix products whose rows do not know their neighbours, and LoRA on top of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Float32 BLAS works through rows in fours; what is left over takes another path, with another order of summation.
_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] @ weight [out, in].T + bias [out]. A row's result does not depend on how many rows there are."""
    rows = x.shape[0]
    if rows % _ROWS and x.dtype == torch.float32:
        return F.linear(F.pad(x, (0, 0, 0, -rows % _ROWS)), weight, bias)[:rows]
    return F.linear(x, weight, bias)


class _GradientOnly(torch.autograd.Function):
    """A linear layer whose output nobody reads: zeros forward, the true gradient backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        ctx.bias = bias is not None and bias.requires_grad
        return x.new_zeros(1).expand(x.shape[0], weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dx = grad @ weight if ctx.needs_input_grad[0] else None
        dw = grad.t() @ x if ctx.needs_input_grad[1] else None
        return dx, dw, grad.sum(0) if ctx.bias else None


def linear_gradient_only(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stands for `linear` where a layer is recomputed for its gradients and the output itself is not needed."""
    return _GradientOnly.apply(x, weight, bias)


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
