"""Native gradients against autograd's of the reference in float64: tails, extremes, head norms."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import differentiable, reference
from coserve.kernels.native import kernel

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def same(function, oracle, *inputs: torch.Tensor) -> None:
    """The values and the gradients of all inputs that have some."""
    ours = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    actual, wanted = function(*ours), oracle(*wide)
    grad = torch.randn_like(actual)
    actual.backward(grad)
    wanted.backward(grad.double())
    tolerance = TOLERANCE[actual.dtype]
    pairs = [(actual, wanted), *((a.grad, b.grad) for a, b in zip(ours, wide, strict=True) if a.requires_grad)]
    for a, b in pairs:
        assert torch.isfinite(a).all()
        assert (a.double() - b).abs().max() <= tolerance * (b.abs().max() + 1e-6)


def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).to(dtype).requires_grad_()


def test_the_kernels_were_built():
    assert all(kernel(name, torch.float32) for name in ("rms_norm_gradient", "silu_and_mul_gradient", "rotate"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 17), (130, 600), (5, 3, 16)])
def test_rms_norm(dtype, shape):
    torch.manual_seed(0)
    x, weight = leaf(*shape, dtype=dtype, scale=30), leaf(shape[-1], dtype=dtype)
    same(lambda x, w: differentiable.rms_norm(x, w, 1e-5), lambda x, w: reference.rms_norm(x, w, 1e-5), x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_at_extremes_too(dtype):
    torch.manual_seed(0)
    gate = torch.cat((torch.linspace(-200, 200, 501), torch.linspace(-3, 3, 502)))
    x = torch.cat((gate, torch.randn(1003))).repeat(40, 1).to(dtype).requires_grad_()
    same(differentiable.silu_and_mul, reference.silu_and_mul, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 2), (7, 3, 10), (90, 9, 64)])
def test_rotate(dtype, rows, heads, dim):
    torch.manual_seed(0)
    angles = torch.randn(rows, dim // 2)
    x = leaf(heads, rows, dim, dtype=dtype).transpose(0, 1)  # not contiguous
    x = x.detach().requires_grad_()
    same(
        lambda x: differentiable.rotate(x, angles.cos(), angles.sin()),
        lambda x: reference.rotate(x, angles.cos(), angles.sin()).double(),
        x,
    )
