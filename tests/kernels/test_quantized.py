"""Matrices of 8- and 4-bit integers: their format, and the native product against float64 on what it reads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.kernels import LoraLayer, LoraRows, LoraWeights, linear, lora_linear, quantized
from coserve.kernels.native import library
from coserve.kernels.quantized import QuantizedWeight, cat, dequantize, pack, quantize, rounded, unpack

KINDS = [(8, None, True), (8, 32, True), (8, 128, False), (4, 32, True), (4, None, True), (4, 128, False)]
ODD_SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (2, 16, 32),
    (7, 33, 130),
    (13, 65, 1030),
    (64, 17, 2047),
    (130, 40, 96),
    (5, 3, 4100),
]


def random(rows: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows + n + k)
    return torch.randn(rows, k), torch.randn(n, k) / k**0.5


def relative_error(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((actual.double() - wanted).abs().max() / (wanted.abs().max() + 1e-30))


def test_the_native_products_were_built():
    lib = library()
    assert lib is not None and lib.coserve_linear_quantized and lib.coserve_dequantize


@given(
    bits=st.sampled_from([8, 4]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 150),
    group=st.sampled_from([32, 64, 160]),
    with_mins=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_what_was_packed_comes_out_again(bits, rows, columns, group, with_mins, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = (-128, 128) if bits == 8 else (0, 16) if with_mins else (-8, 8)
    q = torch.randint(low, high, (rows, columns), generator=generator)
    scales = torch.rand(rows, -(-columns // group), generator=generator).half()
    mins = torch.randn(scales.shape, generator=generator).half() if with_mins else None
    weight = pack(q, scales, mins, bits=bits, group=group)
    out = unpack(weight)
    assert torch.equal(out[0].int(), q.int()) and torch.equal(out[1], scales)
    assert out[2] is None if mins is None else torch.equal(out[2], mins)
    spread = [None if t is None else t.float().repeat_interleave(group, 1)[:, :columns] for t in (scales, mins)]
    wanted = q * spread[0] + (0 if spread[1] is None else spread[1])
    assert torch.allclose(dequantize(weight), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(dequantize(cat([weight, weight])), dequantize(weight).repeat(2, 1))


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
def test_elements_are_off_by_half_a_step_at_most(bits, group, symmetric):
    weight = torch.randn(40, 200)
    weight[3], weight[4, :64] = 0, 0
    packed = quantize(weight, bits, group, symmetric=symmetric)
    steps = unpack(packed)[1].float().repeat_interleave(packed.group, 1)[:, :200]
    assert ((dequantize(packed) - weight).abs() <= 0.51 * steps + 2e-3 * weight.abs()).all()
    assert not dequantize(packed)[3].any()
    assert packed.nbytes < weight.numel() * bits / 8 * 2


def test_groups_of_another_size_are_refused():
    with pytest.raises(ValueError, match="48"):
        pack(torch.zeros(4, 96), torch.ones(4, 2), None, bits=4, group=48)
    with pytest.raises(ValueError, match="one format"):
        cat([quantize(torch.ones(4, 64), 8), quantize(torch.ones(4, 64), 4)])


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
@pytest.mark.parametrize(("rows", "n", "k"), ODD_SHAPES)
def test_a_product_equals_float64(bits, group, symmetric, rows, n, k):
    """Activations are whole numbers up to what is the largest step, so that rounding them changes nothing."""
    _, weight = random(rows, n, k)
    packed, bias = quantize(weight, bits, group, symmetric=symmetric), torch.randn(n)
    most = 16383 if bits == 8 else 127
    x = torch.randint(-most, most + 1, (rows, k)).float()
    x[:, :: 1 if bits == 8 else 32] = most
    x *= 2.0**-7
    wanted = x.double() @ quantized.dequantize_by_torch(packed).double().t() + bias
    assert relative_error(linear(x, packed, bias), wanted) < 3e-6


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
@pytest.mark.parametrize(("rows", "n", "k"), ODD_SHAPES)
def test_activations_lose_what_their_rounding_loses(bits, group, symmetric, rows, n, k):
    x, weight = random(rows, n, k)
    packed = quantize(weight, bits, group, symmetric=symmetric)
    product, elements = linear(x, packed).double(), dequantize(packed).double().t()
    # Half-way between two steps, the last bit of a float decides.
    assert relative_error(product, rounded(x, bits).double() @ elements) < (1e-4 if bits == 8 else 5e-3)
    assert relative_error(product, x.double() @ elements) < (3e-4 if bits == 8 else 3e-2)


@pytest.mark.parametrize(("bits", "group", "symmetric"), KINDS)
@pytest.mark.parametrize(("n", "k"), [(50, 100), (576, 1536), (64, 4096)])
def test_a_row_is_the_same_to_the_bit_in_any_company(bits, group, symmetric, n, k):
    x, weight = random(300, n, k)
    packed = quantize(weight, bits, group, symmetric=symmetric)
    whole = linear(x, packed)
    for start, rows in [(0, 1), (1, 2), (5, 3), (9, 4), (3, 7), (8, 16), (20, 33), (40, 129), (0, 299)]:
        assert torch.equal(linear(x[start : start + rows], packed), whole[start : start + rows]), (start, rows)


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_values_and_strides(bits):
    packed = quantize(torch.randn(20, 64), bits)
    x = torch.randn(64, 6).t()  # not contiguous
    x[1] *= 1e33
    x[2] *= 1e-36
    x[3] = 0
    y = linear(x, packed)
    wanted = x.double() @ dequantize(packed).double().t()
    assert all(relative_error(y[i], wanted[i]) < 2e-2 for i in (0, 1, 4, 5))
    assert y[2].abs().max() < 1e-30 and not y[3].any()
    x[4, 3], x[5, 63] = torch.nan, torch.inf
    y = linear(x, packed)
    assert not y[4:].isfinite().any() and y[:4].isfinite().all()
    assert linear(x[:0], packed).shape == (0, 20)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [3, 300])
def test_gradients_go_through_to_the_input_and_to_an_adapter(bits, rows):
    """Against autograd on the dequantised matrix: QLoRA (Dettmers et al., 2023)."""
    x, weight = random(rows, 48, 96)
    packed = quantize(weight, bits)
    a, b = torch.randn(4, 96) / 10, torch.randn(48, 4) / 10
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    layer = LoraLayer({"o_proj": LoraWeights(leaves[1], leaves[2], 0.5)})
    y = lora_linear(leaves[0], packed, None, [("o_proj", 0, 48)], [LoraRows(0, rows, layer)])
    grad = torch.randn_like(y)
    y.backward(grad)
    oracle = [t.double().requires_grad_() for t in (x, a, b)]
    wanted = oracle[0] @ dequantize(packed).double().t() + 0.5 * oracle[0] @ oracle[1].t() @ oracle[2].t()
    wanted.backward(grad.double())
    assert relative_error(y.detach(), wanted.detach()) < (1e-3 if bits == 8 else 3e-2)
    for leaf, other in zip(leaves, oracle, strict=True):
        assert relative_error(leaf.grad, other.grad) < 1e-5


def test_the_format_has_a_name_and_a_size():
    packed = quantize(torch.randn(32, 128), 4)
    assert isinstance(packed, QuantizedWeight) and packed.name == "int4"
    assert packed.nbytes == 32 * 128 // 2 + 32 * 2 * 2  # 4.25 bits an element


_DIGEST = """
import hashlib, torch
from coserve.kernels import linear, quantized
torch.manual_seed(3)
found = hashlib.sha256()
for bits, group, symmetric in [(8, None, True), (8, 96, False), (8, 32, True), (4, 32, True), (4, 64, False)]:
    weight = quantized.quantize(torch.randn(70, 1500) / 40, bits, group, symmetric=symmetric)
    for rows in (1, 7, 20, 300):
        found.update(linear(torch.randn(rows, 1500), weight, torch.randn(70)).numpy().tobytes())
print(found.hexdigest())
"""


def test_tiles_give_what_vectors_give():
    """Where the processor has AMX; elsewhere both are the same kernels."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, "COSERVE_NATIVE": level},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for level in ("1", "avx512")
    ]
    assert digests[0] == digests[1] and digests[0]
