"""Products of few rows against float64, with floats and with quantised matrices in a GPU's layout; rows alone."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import quantized as packed
from coserve.kernels.gpu import products
from coserve.kernels.gpu.formats import QuantizedRows, dequantize
from coserve.kernels.gpu.rows import silu_and_mul
from tests.kernels.gpu.oracle import DEVICE, close

KINDS = [
    (8, None, True),
    (8, 32, True),
    (8, 128, False),
    (4, 32, True),
    (4, 96, False),
    (4, None, True),
    (4, 128, False),
]
SHAPES = [(1, 1, 1), (3, 33, 130), (17, 40, 390)]


def matrix(bits, group, symmetric, n, k) -> tuple[QuantizedRows, torch.Tensor]:
    """And what it is worth, in float64."""
    torch.manual_seed(n + k)
    weight = packed.quantize(torch.randn(n, k) / k**0.5, bits, group, symmetric=symmetric)
    return QuantizedRows.of(weight, DEVICE), packed.dequantize_by_torch(weight).double()


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 130), (16, 256)])
def test_the_layout_keeps_every_value(bits, group, symmetric, n, k):
    weight, wanted = matrix(bits, group, symmetric, n, k)
    assert torch.equal(dequantize(weight).cpu().double(), wanted.float().double())
    close(products.dequantize(weight, torch.float32), wanted, torch.float32, tolerance=1e-6)
    assert weight.data.shape[0] == n and weight.nbytes < n * (k + weight.block) * bits / 8 + 8 * n * (-(-k // 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
@pytest.mark.parametrize(("rows", "n", "k"), SHAPES)
def test_a_product_equals_float64(dtype, bits, group, symmetric, rows, n, k):
    weight, wide = matrix(bits, group, symmetric, n, k)
    x, bias = torch.randn(rows, k).to(dtype).to(DEVICE), torch.randn(n).to(dtype).to(DEVICE)
    wanted = x.cpu().double() @ wide.t()
    close(products.product(x, weight), wanted, dtype)
    close(products.product(x, weight, bias), wanted + bias.cpu().double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "n", "k"), [*SHAPES, (2, 40, 1100)])
def test_a_product_with_floats_equals_float64(dtype, rows, n, k):
    x, weight, bias = (torch.randn(*s).to(dtype).to(DEVICE) for s in ((rows, k), (n, k), (n,)))
    wanted = x.cpu().double() @ weight.cpu().double().t() + bias.cpu().double()
    close(products.product(x, weight, bias), wanted, dtype)
    close(products.product(x.float(), weight, bias), wanted, torch.float32)


def packed_as(kind: str, n: int, k: int) -> torch.Tensor | QuantizedRows:
    if kind == "bfloat16":
        return (torch.randn(n, k) / k**0.5).bfloat16().to(DEVICE)
    if kind == "float8":
        return QuantizedRows.in_fp8(torch.randn(n, k).to(DEVICE) / k**0.5)
    bits, group = {"int8": (8, None), "int4": (4, None), "int4 with mins": (4, 32)}[kind]
    return matrix(bits, group, "mins" not in kind, n, k)[0]


ALL = ["bfloat16", "float8", "int8", "int4", "int4 with mins"]


def widened(weight: torch.Tensor | QuantizedRows) -> torch.Tensor:
    return (weight if isinstance(weight, torch.Tensor) else dequantize(weight)).cpu().double()


@pytest.mark.parametrize("kind", ALL)
def test_a_row_does_not_know_its_company(kind):
    """Columns are split, and the number of rows decides about tiles alone."""
    weight = packed_as(kind, 72, 2100)
    few = products.FEW_ROWS if kind == "bfloat16" else products.FEW_PACKED_ROWS
    x, residual = (torch.randn(few, size).bfloat16().to(DEVICE) for size in (2100, 72))
    assert products.splits_of(weight) > 1
    whole = products.product(x, weight, None, residual)
    close(whole, x.cpu().double() @ widened(weight).t() + residual.cpu().double(), torch.bfloat16)
    for start, end in ((0, 1), (3, 12), (10, few)):
        assert torch.equal(products.product(x[start:end], weight, None, residual[start:end]), whole[start:end])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("rows", [3, 70])
def test_what_is_added_is_added(kind, rows):
    weight = packed_as(kind, 48, 320)
    x, bias, residual = (torch.randn(*s).bfloat16().to(DEVICE) for s in ((rows, 320), (48,), (rows, 48)))
    wanted = x.cpu().double() @ widened(weight).t()
    tolerance = 0.06 if kind == "float8" and rows > products.FEW_PACKED_ROWS else None  # those are rounded to 8 bits
    close(products.product(x, weight), wanted, torch.bfloat16, tolerance)
    wanted = wanted + bias.cpu().double() + residual.cpu().double()
    close(products.product(x, weight, bias, residual.clone()), wanted, torch.bfloat16, tolerance)
    wanted = wanted - bias.cpu().double()
    close(products.product(x, weight, None, residual), wanted, torch.bfloat16, tolerance)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 2, 70), (20, 140, 2100), (70, 64, 96)])
def test_a_gated_product_is_the_activation_of_a_product(kind, rows, n, k):
    weight = packed_as(kind, n, k)
    x, bias = torch.randn(rows, k).bfloat16().to(DEVICE), torch.randn(n).bfloat16().to(DEVICE)
    for added in (None, bias):
        wanted = silu_and_mul(products.product(x, weight, added))
        assert torch.equal(products.gated_product(x, weight, added), wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_many_rows_take_the_widened_matrix(bits):
    weight, wide = matrix(bits, None, True, 20, 1100)
    x, bias = torch.randn(70, 1100).to(DEVICE), torch.randn(20).to(DEVICE)
    wanted = x.cpu().double() @ wide.t() + bias.cpu().double()
    close(products.product(x, weight, bias), wanted, torch.float32)


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_values_stay_in_their_rows(bits):
    weight, wide = matrix(bits, None, True, 20, 70)
    x = torch.randn(5, 70)
    x[0], x[1], x[2, 3], x[3, 69] = x[0] * 1e33, 0, torch.nan, torch.inf
    y = products.product(x.to(DEVICE), weight).cpu()
    close(y[0], x[0].double() @ wide.t(), torch.float32)
    assert not y[1].any() and y[2].isnan().all() and not y[3].isfinite().any() and y[4].isfinite().all()
    assert products.product(x[:0].to(DEVICE), weight).shape == (0, 20)
