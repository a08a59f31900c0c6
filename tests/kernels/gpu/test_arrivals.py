"""Several programs, one of which goes on: once for each result, launch after launch."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from coserve.kernels.gpu import target
from coserve.kernels.gpu.arrivals import counters, last_to_arrive
from coserve.kernels.gpu.products import product, splits_of
from tests.kernels.gpu.oracle import DEVICE


@triton.jit
def _add_up(x, left, out, counters):
    result, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    tl.store(left + result * programs + program, tl.load(x + result * programs + program) * 2)
    if last_to_arrive(counters + result, programs):
        total = tl.load(out + result)
        for other in range(programs):
            total += tl.load(left + result * programs + other, cache_modifier=".cg")
        tl.store(out + result, total)


def test_the_last_one_sees_what_all_have_left_and_the_counters_are_zero_again():
    results, programs = (300, 40) if DEVICE != "cpu" else (7, 5)  # the interpreter runs one after the other
    x = torch.randint(0, 100, (results, programs), device=DEVICE)
    out, counts = torch.zeros(results, dtype=torch.int64, device=DEVICE), counters(x.device, results)
    for launch in range(1, 4):
        _add_up[(results, programs)](x, torch.empty_like(x), out, counts)
        assert torch.equal(out, launch * 2 * x.sum(1)) and not counts.any()


def test_the_same_counters_serve_all_launches():
    device = torch.zeros(1, device=DEVICE).device
    assert counters(device, 3) is counters(device, 5)
    with pytest.raises(ValueError, match="100000 results"):
        counters(device, 100_000)


@pytest.mark.skipif(DEVICE == "cpu", reason="programs run at the same time on a GPU only: TRITON_INTERPRET=0 there")
@pytest.mark.parametrize("early", [False, True])
def test_a_chain_of_products_is_the_same_every_time(early, monkeypatch):
    """Each depends on the one before it: a kernel that began too early, or summed too soon, would show."""
    monkeypatch.setattr(target, "EARLY", early)
    weights = [(torch.randn(512, 512, device=DEVICE) / 512**0.5).bfloat16() for _ in range(8)]
    assert splits_of(weights[0]) > 1
    start = torch.randn(16, 512, device=DEVICE).bfloat16()

    def chain() -> torch.Tensor:
        x = start
        for weight in weights * 4:
            x = product(x, weight, None, x)
        return x

    first = chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain()
    for _ in range(50):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, first) and torch.equal(chain(), first)
