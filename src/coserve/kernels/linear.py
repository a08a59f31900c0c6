"""Matrix products whose rows do not know their neighbours, LoRA on top of them, and the gradients of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve.kernels import quantized, reference
from coserve.kernels.gpu import kernels_for, on_gpu
from coserve.kernels.gpu.formats import QuantizedRows
from coserve.kernels.native import kernel, library, multiplies_bfloat16, pointer
from coserve.kernels.quantized import QuantizedWeight

Weight = Tensor | QuantizedWeight | QuantizedRows  # a matrix [out, in]; packed for a CPU, or for a GPU

# From so many rows on, BLAS on widened weights is worth the widening. For training alone: its order of summation is
# another one, and may depend on the number of rows.
_MANY_ROWS = 256


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """residual [rows, out] + x [rows, in] @ weight [out, in].T + bias [out]. Differentiable.

    Float32 rows may meet bfloat16 or quantised weights: those are widened on their way into the product. Without
    gradients, a row's result does not depend on how many rows there are, and the residual is used up: on a GPU the
    result may lie in its memory.
    """
    inputs = (x, weight, bias, residual)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs):
        return _added(residual, _Linear.apply(x, weight, bias, True, None, ()))
    return _product(x, weight, bias, residual)


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

    def dropped(self, module: str, x: Tensor) -> Tensor:
        """The module's input. Linear in x, so that it is its own gradient."""
        return x if self.dropout is None else self.dropout(module, x)

    def delta(self, module: str, x: Tensor) -> Tensor | None:
        """What the adapter adds to the module's output; not differentiable."""
        lora = self.modules.get(module)
        if lora is None:
            return None
        return _product(_product(self.dropped(module, x), lora.a, None), lora.b, None) * lora.scaling


@dataclass(frozen=True)
class LoraRows:
    """Rows [start, end) of a batch, and the adapter that they go through."""

    start: int
    end: int
    layer: LoraLayer


@dataclass(frozen=True)
class StackedLora:
    """A batch on a GPU in which any row may go through any adapter.

    stacks: by the name of a matrix's first module, what all adapters have for that matrix (`gpu.lora.LoraStack`).
    tiles: which rows go through which (`gpu.lora.lora_tiles`).
    """

    stacks: Mapping[str, Any]
    tiles: Tensor

    def add(self, y: Tensor, x: Tensor, parts: Parts) -> None:
        """To y, the output of these modules for x, each row's adapter's."""
        from coserve.kernels.gpu.lora import add_lora  # needs Triton

        add_lora(y, x, self.stacks[parts[0][0]], self.tiles)


Loras = Sequence[LoraRows] | StackedLora
Parts = Sequence[tuple[str, int, int]]  # each module's columns of the output: (name, first, last + 1)


def lora_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    parts: Parts,
    loras: Loras,
    *,
    residual: Tensor | None = None,
    exact: bool = True,
    gradient_only: bool = False,
) -> Tensor:
    """A linear layer of one or more modules side by side, with adapters on some of its rows; `residual` is added, and
    used up as in `linear`.

    `exact`: a row's result does not depend on how many rows there are. Otherwise, and where gradients are enabled, the
    faster of two products is taken; then there must be one adapter on all rows, or none. `gradient_only`: nobody reads
    the output, only what flows back through it; without the residual it is zero.
    """
    if isinstance(loras, StackedLora):
        y = _product(x, weight, bias, residual)  # as without adapters, for the rows that have none
        if adapts(loras, parts):
            loras.add(y, x, parts)
        return y
    if torch.is_grad_enabled() or not exact:
        layer = _adapter_of_all(loras, x.shape[0])
        adapted = [part for part in parts if layer is not None and part[0] in layer.modules]
        leaves = [t for name, _, _ in adapted for t in (layer.modules[name].a, layer.modules[name].b)]  # type: ignore[union-attr]
        return _added(residual, _Linear.apply(x, weight, bias, not gradient_only, layer, adapted, *leaves))
    if not adapts(loras, parts):
        return _product(x, weight, bias, residual)
    y = _product(x, weight, bias)
    for rows in loras:
        inputs = x[rows.start : rows.end]
        for name, first, last in parts:
            delta = rows.layer.delta(name, inputs)
            if delta is not None:
                y[rows.start : rows.end, first:last] += delta
    return _added(residual, y)


def adapts(loras: Loras, parts: Parts) -> bool:
    """Whether any adapter has any of these modules."""
    if isinstance(loras, StackedLora):
        return parts[0][0] in loras.stacks
    return any(name in rows.layer.modules for rows in loras for name, _, _ in parts)


def _added(residual: Tensor | None, y: Tensor) -> Tensor:
    return y if residual is None else residual + y


def _adapter_of_all(loras: Sequence[LoraRows], rows: int) -> LoraLayer | None:
    if not loras:
        return None
    if len(loras) > 1 or (loras[0].start, loras[0].end) != (0, rows):
        raise ValueError("gradients flow through one adapter on all rows, or through none")
    return loras[0].layer


class _Linear(torch.autograd.Function):
    """A product (or zeros for it), adapters on some of its columns, and the gradients of all of them.

    Autograd would copy the whole output for each adapter that adds to a part of it.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        wanted: bool,
        layer: LoraLayer | None,
        adapted: Parts,
        *leaves: Tensor,
    ) -> Tensor:
        wide = weight
        if isinstance(wide, Tensor) and x.shape[0] >= _MANY_ROWS:
            wide = wide.to(x.dtype)
        if not wanted:
            y = x.new_zeros(1).expand(x.shape[0], weight.shape[0])
        else:
            y = _fastest_product(x, wide, bias)
        reduced = _reduced(x, layer, adapted, leaves[::2])
        if wanted:
            for (name, first, last), z, b in zip(adapted, reduced, leaves[1::2], strict=True):
                assert layer is not None
                y[:, first:last].addmm_(z, b.t(), alpha=layer.modules[name].scaling)
        keep_x = x if adapted or _trains(weight) else None
        ctx.save_for_backward(keep_x, wide if isinstance(wide, Tensor) else None, *leaves, *reduced)
        ctx.weight, ctx.layer, ctx.adapted = weight, layer, adapted
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, wide, *rest = ctx.saved_tensors
        leaves, reduced = rest[: 2 * len(ctx.adapted)], rest[2 * len(ctx.adapted) :]
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        dx = _input_gradient(grad, ctx.weight if wide is None else wide) if want_x else None
        dw = (grad.t() @ x).to(ctx.weight.dtype) if want_weight else None
        dz, db = [], []
        for (name, first, last), b, z in zip(ctx.adapted, leaves[1::2], reduced, strict=True):
            part, scaling = grad[:, first:last], ctx.layer.modules[name].scaling
            dz.append((part @ b).mul_(scaling))
            db.append((part.t() @ z).mul_(scaling))
        da = _expanded(x, dx, ctx.layer, ctx.adapted, leaves[::2], dz)
        gradients = [gradient for pair in zip(da, db, strict=True) for gradient in pair]
        return dx, dw, grad.sum(0) if want_bias else None, None, None, None, *gradients


def _reduced(x: Tensor, layer: LoraLayer | None, adapted: Parts, a: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each adapter's input times its a: [rows, r]."""
    if layer is None:
        return []
    if _reads_once(x, layer, a):
        return (x @ torch.cat(list(a)).t()).split([one.shape[0] for one in a], 1)
    return [layer.dropped(name, x) @ one.t() for (name, _, _), one in zip(adapted, a, strict=True)]


def _expanded(
    x: Tensor | None, dx: Tensor | None, layer: LoraLayer, adapted: Parts, a: Sequence[Tensor], dz: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The gradients of the a's from those of `_reduced`'s results; adds the input's to dx, if that is wanted."""
    if x is None or not adapted:
        return []
    if _reads_once(x, layer, a):
        together = torch.cat(list(dz), 1)
        if dx is not None:
            dx.addmm_(together, torch.cat(list(a)))
        return (together.t() @ x).split([one.shape[0] for one in a])
    da = []
    for (name, _, _), one, d in zip(adapted, a, dz, strict=True):
        da.append(d.t() @ layer.dropped(name, x))
        if dx is not None:
            dx += layer.dropped(name, d @ one)
    return da


def _reads_once(x: Tensor, layer: LoraLayer, a: Sequence[Tensor]) -> bool:
    """On a GPU adapters of one input go through one product: reading many rows is most of what they take."""
    return bool(a) and layer.dropout is None and on_gpu(x)


def _trains(weight: Weight) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad


def _fastest_product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """Of many rows BLAS's, where weights have its format."""
    if isinstance(weight, Tensor) and x.shape[0] >= _MANY_ROWS:
        return F.linear(x, weight, bias)
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    if gpu := kernels_for(x):
        return gpu.product(x, weight, bias, residual)
    return _cpu_product(x, weight, bias, residual)


def _cpu_product(x: Tensor, weight: Weight, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if isinstance(weight, QuantizedWeight):
        return quantized.product(x, weight, bias, residual)
    if isinstance(weight, QuantizedRows):
        raise TypeError("a matrix that was packed for a GPU, and rows on a CPU")
    if x.dtype == torch.bfloat16 and library() is not None and not (x.dtype == weight.dtype and multiplies_bfloat16()):
        wide = _cpu_product(x.float(), weight, None if bias is None else bias.float(), None)
        return _added(residual, wide.to(x.dtype))
    run = _native_product(x.dtype, weight.dtype)
    if run is None:
        return _added(residual, reference.product(x, weight.to(x.dtype), bias))
    x, weight, residual = x.contiguous(), weight.contiguous(), None if residual is None else residual.contiguous()
    y = x.new_empty(x.shape[0], weight.shape[0])
    run(pointer(x), pointer(weight), pointer(bias), pointer(residual), pointer(y), x.shape[0], *weight.shape)
    return y


def _native_product(x: torch.dtype, weight: torch.dtype) -> Callable[..., object] | None:
    if x == torch.bfloat16:
        lib = library()
        return None if lib is None else lib.coserve_linear_bf16_rows
    return kernel("linear", weight) if x == torch.float32 else None


def _input_gradient(grad: Tensor, weight: Weight) -> Tensor:
    """grad [rows, out] @ weight [out, in]."""
    if isinstance(weight, QuantizedWeight):
        return grad @ quantized.dequantize(weight).to(grad.dtype)
    if isinstance(weight, QuantizedRows):
        return grad @ kernels_for(grad).dequantize(weight, grad.dtype)
    few = grad.dtype == torch.float32 and grad.shape[0] < _MANY_ROWS and not on_gpu(grad)
    run = kernel("linear_input_gradient", weight.dtype) if few else None
    if run is None:
        return grad @ weight.to(grad.dtype)
    grad, weight = grad.contiguous(), weight.contiguous()
    dx = grad.new_empty(grad.shape[0], weight.shape[1])
    run(pointer(grad), pointer(weight), pointer(dx), grad.shape[0], *weight.shape)
    return dx
