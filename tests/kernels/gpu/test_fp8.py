"""8-bit floats: rounding by row, the product through PyTorch's, matrices with a scale for each row or block."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels.gpu import fp8, products
from coserve.kernels.gpu.formats import QuantizedRows, dequantize
from tests.kernels.gpu.oracle import DEVICE, close

DTYPES = [torch.float32, torch.bfloat16]
E4M3 = torch.float8_e4m3fn


def in_order(q: torch.Tensor, columns: int, size: int = 64) -> torch.Tensor:
    """Rows as they were before they were shuffled."""
    return q.cpu().double().unflatten(1, (-1, size, 2)).transpose(2, 3).flatten(1)[:, :columns]


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_off_by_half_a_step_at_most(dtype):
    x = torch.randn(6, 177).to(dtype).to(DEVICE)
    x[1], x[2], x[3] = x[1] * 1e20, x[2] * 1e-20, 0
    q, scales = fp8.quantize_rows(x, QuantizedRows.in_fp8(torch.randn(16, 177).to(DEVICE)))
    wide, top = x.cpu().double(), x.cpu().double().abs().amax(1, keepdim=True)
    error = (in_order(q, 177) * scales.cpu().double().unsqueeze(1) - wide).abs()
    assert (error <= (wide.abs() / 16 + top / 448 / 512) * 1.001 + top * 1e-7).all()
    assert q.shape == (6, 256) and not q[3].float().any()


def test_a_matrix_keeps_what_8_bits_keep():
    matrix = torch.randn(5, 77)
    matrix[1], matrix[2], matrix[3] = matrix[1] * 1e20, matrix[2] * 1e-20, 0
    weight = QuantizedRows.in_fp8(matrix.to(DEVICE))
    assert weight.name == "float8" and weight.shape == (5, 77) and weight.scales.shape == (1, 5)
    error, top = (dequantize(weight).cpu() - matrix).abs().double(), matrix.abs().amax(1, keepdim=True).double()
    assert (error <= (matrix.abs() / 16 + top / 448 / 512) * 1.001).all()
    close(products.dequantize(weight, torch.float32)[:1], dequantize(weight)[:1].cpu(), torch.float32)


def test_a_product_of_many_rows_loses_what_the_rounding_loses():
    x, matrix = torch.randn(70, 96).bfloat16().to(DEVICE), torch.randn(48, 96).to(DEVICE)
    bias, weight = torch.randn(48).to(DEVICE), QuantizedRows.in_fp8(matrix)
    assert fp8.takes(x, weight) and not fp8.takes(x.float(), weight)
    q, scales = fp8.quantize_rows(x, weight)
    rounded = in_order(q, 96) * scales.cpu().double().unsqueeze(1)
    close(fp8.product(x, weight, bias), rounded @ dequantize(weight).cpu().double().t() + bias.cpu(), torch.bfloat16)
    close(products.product(x, weight), x.cpu().double() @ matrix.cpu().double().t(), torch.bfloat16, tolerance=0.06)


def test_nan_and_extremes_stay_in_their_rows():
    weight = QuantizedRows.in_fp8(torch.randn(16, 32).to(DEVICE))
    x = torch.randn(70, 32).bfloat16().to(DEVICE)
    x[0], x[1, 3], x[2] = x[0] * 1e30, torch.nan, 0
    for y in (products.product(x, weight), products.product(x[:4], weight)):
        assert y[0].isfinite().all() and y[1].isnan().all() and not y[2].any() and y[3].isfinite().all()


def test_a_matrix_that_pytorch_s_product_cannot_take_is_widened():
    weight, x = QuantizedRows.in_fp8(torch.randn(17, 32).to(DEVICE)), torch.randn(70, 32).bfloat16().to(DEVICE)
    assert not fp8.takes(x, weight)
    close(products.product(x, weight), x.cpu().double() @ dequantize(weight).cpu().double().t(), torch.bfloat16)


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
    with pytest.raises(ValueError, match="float8_e5m2"):
        QuantizedRows.of_blocks(data.float().to(torch.float8_e5m2), scales)
