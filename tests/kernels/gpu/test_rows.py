"""Norms, activation and their gradients against float64: tails, extremes; and rows alone."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import reference
from coserve.kernels.gpu import rows
from tests.kernels.gpu.oracle import DEVICE, close

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 2), (3, 17), (5, 64), (7, 1000)]


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).to(dtype).to(DEVICE)


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 16)])
def test_rms_norm_and_its_gradient_equal_float64(dtype, shape):
    x, weight, grad = random(*shape, dtype=dtype, scale=30), random(shape[-1], dtype=dtype), random(*shape, dtype=dtype)
    a, b = wide(x, weight)
    wanted = reference.rms_norm(a, b, 1e-5)
    wanted.backward(grad.cpu().double())
    close(rows.rms_norm(x, weight, 1e-5), wanted.detach(), dtype)
    close(rows.rms_norm_gradient(x, weight, grad, 1e-5), a.grad, dtype)


def test_nan_spreads_over_its_own_row():
    x, weight = random(3, 50, dtype=torch.float32), random(50, dtype=torch.float32)
    x[1, 7] = torch.nan
    assert rows.rms_norm(x, weight, 1e-5).isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_and_its_gradient_equal_float64_at_extremes_too(dtype):
    gate = torch.cat((torch.linspace(-200, 200, 601), torch.linspace(-3, 3, 602)))
    x = torch.cat((gate, torch.randn(1203))).repeat(2, 1).to(dtype).to(DEVICE)
    grad = random(2, 1203, dtype=dtype)
    (a,) = wide(x)
    wanted = reference.silu_and_mul(a)
    wanted.backward(grad.cpu().double())
    out, dx = rows.silu_and_mul(x), rows.silu_and_mul_gradient(x, grad)
    assert torch.isfinite(out).all() and torch.isfinite(dx).all()
    close(out, wanted.detach(), dtype)
    close(dx, a.grad, dtype)


def test_a_row_is_the_same_to_the_bit_in_any_company():
    x, weight = random(9, 300, dtype=torch.bfloat16), random(300, dtype=torch.bfloat16)
    for one in (lambda r: rows.rms_norm(r, weight, 1e-5), rows.silu_and_mul):
        assert torch.equal(torch.cat([one(x[:1]), one(x[1:4]), one(x[4:])]), one(x))
