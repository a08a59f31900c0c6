"""Matrix products in every pair of formats: against float64, row by row alone, and their gradients."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import LoraLayer, LoraRows, LoraWeights, linear, lora_linear
from coserve.kernels.native import kernel
from coserve.kernels.quantized import quantize

# (rows, weights)
FORMATS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ODD_SHAPES = [(1, 1, 1), (3, 5, 7), (2, 4, 32), (7, 33, 130), (13, 65, 1030), (64, 17, 2047), (5, 3, 4100)]


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    scale = wanted.abs().max().item() + 1e-6
    assert (actual.double() - wanted.double()).abs().max().item() <= TOLERANCE[actual.dtype] * scale


def make(rows, n, k, x_dtype, w_dtype):
    torch.manual_seed(rows + n + k)
    x, weight = torch.randn(rows, k).to(x_dtype), (torch.randn(n, k) / k**0.5).to(w_dtype)
    return x, weight, torch.randn(n).to(x_dtype)


def test_the_native_products_were_built():
    assert kernel("linear", torch.float32) and kernel("linear", torch.bfloat16)


@pytest.mark.parametrize(("x_dtype", "w_dtype"), FORMATS)
@pytest.mark.parametrize(("rows", "n", "k"), ODD_SHAPES)
def test_a_product_equals_float64(x_dtype, w_dtype, rows, n, k):
    x, weight, bias = make(rows, n, k, x_dtype, w_dtype)
    wanted = x.double() @ weight.double().t()
    with torch.inference_mode():
        close(linear(x, weight), wanted)
        close(linear(x, weight, bias), wanted + bias.double())


@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16])
def test_extreme_values_and_strides(w_dtype):
    x = torch.tensor([[1e30, -1e-30, 0.0, 3e38, 1.0]]).t().repeat(1, 3).t()  # not contiguous
    weight = torch.tensor([[1e-30, 1e30, 5.0, 1e-38, -2.0]]).repeat(6, 1).to(w_dtype)
    close(linear(x, weight), x.double() @ weight.double().t())
    x[0, 0] = torch.inf
    assert linear(x, weight)[0].isinf().all() and linear(x, weight)[1:].isfinite().all()
    assert linear(x[:0], weight).shape == (0, 6)


@pytest.mark.parametrize(("x_dtype", "w_dtype"), FORMATS)
def test_no_rows(x_dtype, w_dtype):
    x, weight, bias = make(4, 6, 8, x_dtype, w_dtype)
    assert linear(x[:0], weight, bias).shape == (0, 6)


@pytest.mark.parametrize(("x_dtype", "w_dtype"), FORMATS)
@pytest.mark.parametrize(("n", "k"), [(192, 64), (50, 100), (576, 576), (1536, 576), (576, 1536), (2048, 8192)])
def test_a_row_of_a_product_is_the_same_to_the_bit_in_any_company(x_dtype, w_dtype, n, k):
    x, weight, _ = make(300, n, k, x_dtype, w_dtype)
    whole = linear(x, weight)
    for start, rows in [(0, 1), (1, 2), (5, 3), (9, 4), (3, 7), (8, 16), (20, 33), (40, 128), (0, 299)]:
        alone = linear(x[start : start + rows], weight)
        assert torch.equal(alone, whole[start : start + rows]), (start, rows)


@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "n", "k"), [*ODD_SHAPES, (20, 1100, 70), (300, 33, 70)])
def test_gradients_equal_autograds_in_float64(w_dtype, rows, n, k):
    x, weight, bias = make(rows, n, k, torch.float32, w_dtype)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    oracle = [t.detach().double().requires_grad_() for t in leaves]
    grad = torch.randn(rows, n)
    (oracle[0] @ oracle[1].t() + oracle[2]).backward(grad.double())
    close(linear(*leaves), oracle[0] @ oracle[1].t() + oracle[2])
    for gradient_only in (False, True):
        for leaf in leaves:
            leaf.grad = None
        lora_linear(*leaves, [("q_proj", 0, n)], [], gradient_only=gradient_only).backward(grad)
        for leaf, wanted in zip(leaves, oracle, strict=True):
            close(leaf.grad, wanted.grad)


class HalfDropped:
    """Every other input of a module is dropped."""

    def __call__(self, module: str, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([0.0, 2.0]).repeat(x.shape[1] // 2)


def oracle_of(x, weight, a, b, dropped):
    wanted = x @ weight.t()
    inputs = HalfDropped()("", x) if dropped else x
    delta = torch.zeros_like(wanted)
    delta[:, 8:] = 0.5 * (inputs @ a.t() @ b.t())
    return wanted + delta


PARTS = [("gate_proj", 0, 8), ("up_proj", 8, 12)]


@pytest.mark.parametrize("dropped", [False, True])
def test_lora_adds_to_its_own_rows_and_columns(dropped):
    x, weight, _ = make(6, 12, 8, torch.float32, torch.float32)
    a, b = torch.randn(2, 8), torch.randn(4, 2)
    layer = LoraLayer({"up_proj": LoraWeights(a, b, 0.5)}, HalfDropped() if dropped else None)
    with torch.no_grad():
        actual = lora_linear(x, weight, None, PARTS, [LoraRows(1, 4, layer)])
    wanted = x.double() @ weight.double().t()
    wanted[1:4] = oracle_of(x[1:4].double(), weight.double(), a.double(), b.double(), dropped)
    close(actual, wanted)


@pytest.mark.parametrize("rows", [6, 300])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_lora_equal_autograds_in_float64(w_dtype, dropped, rows):
    x, weight, _ = make(rows, 12, 8, torch.float32, w_dtype)
    leaves = [t.requires_grad_() for t in (x, torch.randn(2, 8), torch.randn(4, 2))]
    oracle = [t.detach().double().requires_grad_() for t in leaves]
    layer = LoraLayer({"up_proj": LoraWeights(*leaves[1:], 0.5)}, HalfDropped() if dropped else None)
    grad = torch.randn(rows, 12)
    wanted = oracle_of(oracle[0], weight.double(), *oracle[1:], dropped)
    wanted.backward(grad.double())
    for gradient_only in (False, True):
        for leaf in leaves:
            leaf.grad = None
        y = lora_linear(x, weight, None, PARTS, [LoraRows(0, rows, layer)], gradient_only=gradient_only)
        y.backward(grad)
        assert not y.any() if gradient_only else close(y, wanted) is None
        for leaf, o in zip(leaves, oracle, strict=True):
            close(leaf.grad, o.grad)


@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16])
def test_a_residual_is_added_to_the_result_and_its_gradient_is_the_identity(w_dtype):
    x, weight, bias = make(6, 12, 8, torch.float32, w_dtype)
    residual, grad = torch.randn(6, 12, requires_grad=True), torch.randn(6, 12)
    layer = LoraLayer({"up_proj": LoraWeights(torch.randn(2, 8), torch.randn(4, 2), 0.5)})
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias, residual), residual + linear(x, weight, bias))
    for loras in ([], [LoraRows(0, 6, layer)]):
        plain = lora_linear(x, weight, bias, PARTS, loras)
        y = lora_linear(x, weight, bias, PARTS, loras, residual=residual)
        assert torch.equal(y, residual + plain)
        residual.grad = None
        y.backward(grad)
        assert torch.equal(residual.grad, grad)
        with torch.no_grad():
            assert torch.equal(
                lora_linear(x, weight, bias, PARTS, loras, residual=residual),
                residual + lora_linear(x, weight, bias, PARTS, loras),
            )


def test_gradients_through_an_adapter_on_some_rows_are_refused():
    x, weight, _ = make(6, 12, 8, torch.float32, torch.float32)
    with pytest.raises(ValueError, match="one adapter on all rows"):
        lora_linear(x.requires_grad_(), weight, None, PARTS, [LoraRows(0, 3, LoraLayer({}))])


@pytest.mark.parametrize("kind", ["float32", "widened", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 16, 32), (3, 50, 100), (9, 33, 1030), (40, 70, 2080), (130, 40, 96)])
def test_a_residual_changes_no_bit_of_what_it_is_added_to(kind, rows, n, k):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    x, weight, bias = make(rows, n, k, dtype, torch.float32 if kind in ("float32", "int8", "int4") else torch.bfloat16)
    residual = torch.randn(rows, n).to(dtype)
    packed = quantize(weight, int(kind[3:])) if kind.startswith("int") else weight
    with torch.no_grad():
        for some in (None, bias):
            assert torch.equal(linear(x, packed, some, residual), residual + linear(x, packed, some))
