"""How much KV cache there is, by what is free where the model lives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from coserve.engine import EngineConfig, cache_size
from coserve.engine.cache_size import cache_tokens
from coserve.kernels import BLOCK_SIZE

COST = SimpleNamespace(layers=32, kv_width=2048, kv_bytes=2)  # Llama 3.1 8B: 128 KiB a token


def tokens(device: str, *, positions: int = 1 << 30, **config) -> int:
    decoder = SimpleNamespace(cost=COST, device=torch.device(device), max_positions=positions)
    return cache_tokens(decoder, EngineConfig(**config).on(decoder.device.type))


@pytest.fixture
def free(monkeypatch):
    """So many bytes, on a GPU or in main memory."""

    def set_free(size: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size, 2 * size))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(cache_size, "available_memory", lambda: size)
        monkeypatch.setattr(cache_size, "reserve", lambda decoder, config: config.max_batch_tokens << 18)

    return set_free


def test_a_gpu_gives_most_of_what_the_weights_leave(free):
    free(100 << 30)
    assert tokens("cuda:0") == (83 << 30) // (128 << 10)  # 0.85 of it, less what steps need
    assert tokens("cuda:0", max_batch_tokens=4096) == (84 << 30) // (128 << 10)
    free(1 << 30)
    assert tokens("cuda:0") == BLOCK_SIZE


def test_a_cpu_gives_a_quarter_up_to_4_gib(free):
    free(8 << 30)
    assert tokens("cpu") == (2 << 30) // (128 << 10)
    free(100 << 30)
    assert tokens("cpu") == (4 << 30) // (128 << 10)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_never_more_than_requests_could_use_and_as_many_as_asked(free, device):
    free(100 << 30)
    assert tokens(device, positions=100, max_num_seqs=3) == 300
    assert tokens(device, kv_cache_tokens=5000) == 5000
