"""Norm, activation and rotation with gradients, for the recomputation in training: kernels forward and backward.

Each is the same function as in `reference`, which runs on a CPU where the kernels were not built. Autograd's own
gradients of those take several passes over memory for what is one.
"""

from __future__ import annotations

from ctypes import c_float

import torch
from torch import Tensor

from coserve.kernels import reference
from coserve.kernels.gpu import kernels_for, on_gpu
from coserve.kernels.native import kernel, pointer


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., n], weight [n] -> [..., n]."""
    if not _has_kernels(x):
        return reference.rms_norm(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def silu_and_mul(x: Tensor) -> Tensor:
    """x [rows, 2n] -> [rows, n]: silu of the first half times the second."""
    if not _has_kernels(x):
        return reference.silu_and_mul(x)
    return _SiluAndMul.apply(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows, heads, dim]; cos, sin [rows, dim / 2] float32."""
    if not _has_kernels(x):
        return reference.rotate(x, cos, sin)
    return _Rotate.apply(x, cos, sin)


def _has_kernels(x: Tensor) -> bool:
    return on_gpu(x) or kernel("rotate", x.dtype) is not None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        if gpu := kernels_for(x):
            return gpu.rms_norm(x, weight, eps)
        out, n = torch.empty_like(x), x.shape[-1]
        kernel("rms_norm", x.dtype)(pointer(x), pointer(weight), pointer(out), x.numel() // n, n, c_float(eps))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dx = _norm_gradient(x, weight, grad.contiguous(), ctx.eps)
        return dx, _weight_gradient(x, grad, ctx.eps).to(weight.dtype) if ctx.needs_input_grad[1] else None, None


def _norm_gradient(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    if gpu := kernels_for(x):
        return gpu.rms_norm_gradient(x, weight, grad, eps)
    dx, n = torch.empty_like(x), x.shape[-1]
    run = kernel("rms_norm_gradient", x.dtype)
    run(pointer(x), pointer(weight), pointer(grad), pointer(dx), x.numel() // n, n, c_float(eps))
    return dx


def _weight_gradient(x: Tensor, grad: Tensor, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (grad.float() * normed).flatten(0, -2).sum(0)


class _SiluAndMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.contiguous()
        ctx.save_for_backward(x)
        if gpu := kernels_for(x):
            return gpu.silu_and_mul(x)
        out = x.new_empty(x.shape[0], x.shape[1] // 2)
        kernel("silu_and_mul", x.dtype)(pointer(x), pointer(out), *out.shape)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if gpu := kernels_for(x):
            return gpu.silu_and_mul_gradient(x, grad)
        grad, dx = grad.contiguous(), torch.empty_like(x)
        kernel("silu_and_mul_gradient", x.dtype)(pointer(x), pointer(grad), pointer(dx), *grad.shape)
        return dx


class _Rotate(torch.autograd.Function):
    """Its gradient is the rotation the other way."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        if gpu := kernels_for(x):
            return gpu.rotate(x, cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        if gpu := kernels_for(grad):
            return gpu.rotate_gradient(grad, cos, sin), None, None
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    kernel("rotate", x.dtype)(pointer(out), pointer(cos.contiguous()), pointer(sin.contiguous()), *x.shape)
    return out
