"""Tensors arrive as they were sent, in pieces that do not fit them."""

from __future__ import annotations

import pytest
import torch

from coserve.kernels.device import CPU
from coserve.kernels.transfer import Transfer

TENSORS = [
    torch.randn(7, 129),
    torch.randn(3, 5, 11).to(torch.bfloat16),
    torch.randint(-128, 127, (513,), dtype=torch.int8),
    torch.randn(4, 32).to(torch.float8_e4m3fn),
    torch.arange(24).view(4, 6)[1:3],
    torch.randn(64, 2).half(),
    torch.tensor(3.5),
    torch.empty(0, 4),
]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes(raw(a)) == bytes(raw(b))


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.mark.parametrize("piece", [1, 64, 1000, 1 << 20])
def test_there_and_back_again(piece):
    transfer = Transfer(CPU, piece)
    for tensor in TENSORS:
        there = transfer.to_device(tensor)
        back = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        transfer.download(back, there)
        assert same(there, tensor) and same(back, tensor)


def test_what_lies_in_columns_is_sent_in_rows():
    tensor = torch.randn(6, 4).t()
    assert same(Transfer(CPU, 64).to_device(tensor), tensor)


def test_a_target_of_another_size_is_refused():
    with pytest.raises((ValueError, RuntimeError)):
        Transfer(CPU, 64).upload(torch.empty(10), torch.empty(100))
