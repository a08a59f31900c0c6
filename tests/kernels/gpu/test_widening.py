"""Every packed element to bfloat16, by Triton's conversions and by NVIDIA's bits: none is off."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from coserve.kernels.gpu.target import capability
from coserve.kernels.gpu.widening import widened
from tests.kernels.gpu.oracle import DEVICE

UNITS = torch.arange(-(2**15), 2**15).to(torch.int16)  # all that there are
KINDS = [("int4", True), ("int4", False), ("int8", True), ("float8", True)]


@triton.jit
def _widen(units, out, piece: tl.constexpr, kind: tl.constexpr, signed: tl.constexpr, by_bits: tl.constexpr):
    at = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(out + at, widened(tl.load(units + at), piece, kind, signed, by_bits))


def wanted(piece: int, kind: str, signed: bool) -> torch.Tensor:
    bits = 4 if kind == "int4" else 8
    q = UNITS.int() >> bits * piece & 2**bits - 1
    if kind == "int4":
        return q - 8.0 if signed else q.float()
    byte = q.to(torch.uint8)
    return (byte.view(torch.int8) if kind == "int8" else byte.view(torch.float8_e4m3fn)).float()


@pytest.mark.parametrize(("kind", "signed"), KINDS)
@pytest.mark.parametrize("by_bits", [False, True])
def test_every_element_is_exact(kind, signed, by_bits):
    if by_bits and (DEVICE == "cpu" or capability() < 80):
        pytest.skip("inline assembly runs on NVIDIA's GPUs only, not in the interpreter: TRITON_INTERPRET=0 there")
    for piece in range(4 if kind == "int4" else 2):
        out = torch.empty(len(UNITS), dtype=torch.bfloat16, device=DEVICE)
        _widen[(len(UNITS) // 1024,)](UNITS.to(DEVICE), out, piece, kind, signed, by_bits)
        values = wanted(piece, kind, signed)
        real = ~values.isnan()
        assert torch.equal(out.cpu().float()[real], values[real])
