"""Norms, activation and their gradients against float64: tails, extremes, 8-bit results; and rows alone."""

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_residual_is_added_first_and_the_sum_is_kept(dtype, shape):
    x, residual, weight = random(*shape, dtype=dtype), random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    out, total = rows.add_rms_norm(x, residual, weight, 1e-5)
    close(total, x.cpu().double() + residual.cpu().double(), dtype)
    close(out, reference.rms_norm(*wide(total, weight), 1e-5).detach(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "step"), [(torch.int8, 0.5 / 127), (torch.float8_e4m3fn, 1 / 16)])
@pytest.mark.parametrize("with_residual", [True, False])
def test_a_norm_in_8_bits_is_off_by_half_a_step(dtype, bits, step, with_residual):
    x, weight = random(5, 333, dtype=dtype, scale=9), random(333, dtype=dtype)
    x[3] = 0
    residual = random(5, 333, dtype=dtype) if with_residual else None
    if residual is not None:
        residual[3] = 0
    q, scales, total = rows.rms_norm_quantized(x, weight, 1e-5, bits, residual)
    assert q.dtype == bits and scales.shape == (5,)
    wanted = reference.rms_norm(*wide(total, weight), 1e-5).detach()
    top = wanted.abs().amax(1, keepdim=True)
    error = (q.cpu().double() * scales.cpu().double().unsqueeze(1) - wanted).abs()
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert (error <= (step * (top if bits == torch.int8 else wanted.abs()) + (rounding + 1e-5) * top)).all()
    assert not q[3].float().any()


@pytest.mark.parametrize("bits", [torch.int8, torch.float8_e4m3fn])
def test_nan_spreads_over_its_own_row_in_8_bits_too(bits):
    x, weight = random(3, 50, dtype=torch.float32), random(50, dtype=torch.float32)
    x[1, 7] = torch.nan
    q, scales, _ = rows.rms_norm_quantized(x, weight, 1e-5, bits)
    out = q.float() * scales.unsqueeze(1)
    assert out[1].isnan().all() and torch.isfinite(out[[0, 2]]).all()
    assert torch.equal(rows.rms_norm(x, weight, 1e-5).isnan().any(1), torch.tensor([False, True, False], device=DEVICE))


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
