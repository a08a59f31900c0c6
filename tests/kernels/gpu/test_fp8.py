"""8-bit floats: rounding by row, the product through PyTorch's, matrices with a scale for each block."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels.gpu import fp8, products
from coserve.kernels.gpu.formats import QuantizedRows, dequantize
from tests.kernels.gpu.oracle import DEVICE, close

DTYPES = [torch.float32, torch.bfloat16]
E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [E4M3, torch.float8_e5m2, torch.int8])
def test_elements_are_off_by_half_a_step_at_most(dtype, bits):
    x = torch.randn(6, 77).to(dtype).to(DEVICE)
    x[1], x[2], x[3] = x[1] * 1e20, x[2] * 1e-20, 0
    q, scales = fp8.quantize_rows(x, bits)
    wide, top = x.cpu().double(), x.cpu().double().abs().amax(1, keepdim=True)
    error = (q.cpu().double() * scales.cpu().double().unsqueeze(1) - wide).abs()
    step = {E4M3: wide.abs() / 16 + top / 448 / 512, torch.float8_e5m2: wide.abs() / 8, torch.int8: top / 254}[bits]
    assert (error <= step * 1.001 + top * 1e-7).all()
    assert not q[3].float().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_loses_what_the_rounding_loses(dtype):
    x, matrix = torch.randn(7, 96).to(dtype).to(DEVICE), torch.randn(48, 96).to(DEVICE)
    bias = torch.randn(48).to(DEVICE)
    weight = fp8.Fp8Weight.of(matrix)
    q, scales = fp8.quantize_rows(x)
    rounded = q.cpu().double() * scales.cpu().double().unsqueeze(1)
    wide = weight.data.cpu().double() * weight.scales.cpu().double().unsqueeze(1)
    wanted = rounded @ wide.t() + bias.cpu().double()
    y = fp8.linear(x, weight, bias)
    assert y.dtype == dtype
    close(y, wanted, torch.bfloat16)
    close(fp8.linear(x, weight), x.cpu().double() @ matrix.cpu().double().t(), dtype, tolerance=0.06)
    assert fp8.linear(x[:0], weight).shape == (0, 48)


def test_nan_and_extremes_stay_in_their_rows():
    weight = fp8.Fp8Weight.of(torch.randn(16, 32).to(DEVICE))
    x = torch.randn(4, 32).to(DEVICE)
    x[0], x[1, 3], x[2] = x[0] * 1e30, torch.nan, 0
    y = fp8.linear(x, weight)
    assert y[0].isfinite().all() and y[1].isnan().all() and not y[2].any() and y[3].isfinite().all()


def test_a_matrix_that_the_product_cannot_take_is_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        fp8.Fp8Weight.of(torch.randn(17, 32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_with_a_scale_for_each_block_equals_float64(dtype):
    data, scales = torch.randn(150, 300).to(E4M3), torch.rand(2, 3) + 0.1
    spread = scales.repeat_interleave(128, 0)[:150].repeat_interleave(128, 1)[:, :300]
    wide = data.double() * spread.double()
    weight = QuantizedRows.of_blocks(data.to(DEVICE), scales.to(DEVICE))
    assert weight.name == "float8" and weight.shape == (150, 300)
    close(dequantize(weight), wide, torch.float32)
    x = torch.randn(3, 300).to(dtype).to(DEVICE)
    close(products.product(x, weight), x.cpu().double() @ wide.t(), dtype)
    with pytest.raises(ValueError, match="blocks of 128"):
        QuantizedRows.of_blocks(data, scales[:1])
