"""Adapters of several segments at once: `lora_linear`'s semantics, against float64; rows alone."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels import LoraLayer, LoraWeights
from coserve.kernels.gpu.lora import LoraStack, add_lora, lora_tiles
from tests.kernels.gpu.oracle import DEVICE, close

PARTS = [("q_proj", 0, 70), ("k_proj", 70, 87), ("v_proj", 87, 104)]
SEGMENTS = [(0, 1, 2), (1, 20, 0), (24, 26, 1)]  # rows 20 to 23 have no adapter


def adapter(modules: dict[str, int], columns: int, dtype: torch.dtype) -> LoraLayer:
    """`modules`: rank by name."""
    widths = {name: last - first for name, first, last in PARTS}
    return LoraLayer(
        {
            name: LoraWeights(
                (torch.randn(r, columns) / columns**0.5).to(dtype), torch.randn(widths[name], r).to(dtype), 2.0 / r
            )
            for name, r in modules.items()
        }
    )


def case(columns: int, dtype: torch.dtype):
    torch.manual_seed(0)
    layers = [
        adapter({"q_proj": 4, "v_proj": 20}, columns, dtype),
        adapter({"k_proj": 1}, columns, dtype),
        adapter({"q_proj": 16, "k_proj": 16, "v_proj": 16}, columns, dtype),
    ]
    x, y = torch.randn(26, columns).to(dtype).to(DEVICE), torch.randn(26, 104).to(dtype).to(DEVICE)
    return layers, x, y, LoraStack.of(layers, PARTS, columns, dtype, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 130, 1100])
def test_every_row_goes_through_its_own_adapter(dtype, columns):
    layers, x, y, stack = case(columns, dtype)
    wanted = y.cpu().double()
    for start, end, slot in SEGMENTS:
        for name, first, last in PARTS:
            if lora := layers[slot].modules.get(name):
                low = x[start:end].cpu().double() @ lora.a.double().t()
                wanted[start:end, first:last] += low @ lora.b.double().t() * lora.scaling
    untouched = y[20:24].clone()
    add_lora(y, x, stack, lora_tiles(SEGMENTS, DEVICE))
    close(y, wanted, dtype)
    assert torch.equal(y[20:24], untouched)


def test_a_row_is_the_same_to_the_bit_in_any_company():
    _, x, y, stack = case(1100, torch.bfloat16)
    whole = y.clone()
    add_lora(whole, x, stack, lora_tiles(SEGMENTS, DEVICE))
    alone = y[17:20].clone()
    add_lora(alone, x[17:20], stack, lora_tiles([(0, 3, 0)], DEVICE))
    assert torch.equal(alone, whole[17:20])


def test_nan_stays_in_its_row_and_off_modules_without_an_adapter():
    _, x, y, stack = case(130, torch.float32)
    x[24] = torch.nan
    add_lora(y, x, stack, lora_tiles(SEGMENTS, DEVICE))
    assert y[24, 70:87].isnan().all() and torch.isfinite(y[24, :70]).all() and torch.isfinite(y[24, 87:]).all()
    assert torch.isfinite(y[:24]).all() and torch.isfinite(y[25]).all()
    add_lora(y, x, stack, lora_tiles([], DEVICE))


def test_an_adapter_in_training_with_dropout_is_refused():
    layer = LoraLayer({}, dropout=lambda module, x: x)
    with pytest.raises(ValueError, match="dropout"):
        LoraStack.of([layer], PARTS, 8, torch.float32, DEVICE)
