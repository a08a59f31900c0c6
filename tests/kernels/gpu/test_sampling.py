"""Tokens are those of the engine's sampler, for the same logits, parameters and random numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from coserve.engine import SamplingParams, sampler
from coserve.kernels.gpu.sampling import TOO_FEW, sample
from tests.kernels.gpu.oracle import DEVICE

DRAWS = (0.0001, 0.1234, 0.5, 0.77, 0.999)
FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 40, "top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.00001},
    {"min_p": 0.2},
    {"top_k": 100, "top_p": 0.95, "min_p": 0.05},
]


def drawn(logits: torch.Tensor, params: list[SamplingParams], uniform: list[float], **options) -> list[int]:
    def column(name, dtype=torch.float32):
        return torch.tensor([getattr(p, name) for p in params], dtype=dtype, device=DEVICE)

    rows = (column("temperature"), column("top_k", torch.int32), column("top_p"), column("min_p"))
    return sample(logits.to(DEVICE), *rows, torch.tensor(uniform, device=DEVICE), **options).tolist()


def wanted(logits: torch.Tensor, params: SamplingParams, uniform: float) -> int:
    if params.greedy:
        return int(logits.argmax())
    request = SimpleNamespace(params=params, completion_tokens=0, draw=lambda index: uniform)
    return sampler._draw(logits.float(), request)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [5, 300, 2500])
def test_a_batch_of_all_kinds_gives_the_sampler_s_tokens(dtype, vocab):
    torch.manual_seed(vocab)
    cases = [
        (SamplingParams(temperature=temperature, **filters), u)
        for temperature in (0, 0.3, 1.0)
        for filters in FILTERS
        for u in DRAWS[:: 2 if temperature else 4]
    ]
    logits = torch.stack([(torch.randperm(vocab) / vocab * 16) for _ in cases]).to(dtype)  # no two alike, in float32
    tokens = drawn(logits, [p for p, _ in cases], [u for _, u in cases])
    for row, (params, u), token in zip(logits, cases, tokens, strict=True):
        # Which of two equal logits comes first is nobody's promise.
        assert token >= 0 and row[token] == row[wanted(row, params, u)], (params, u)


def test_without_filters_nothing_is_sorted_and_the_tokens_are_the_same():
    logits = torch.randn(len(DRAWS) + 1, 3000)
    params = [SamplingParams() for _ in DRAWS] + [SamplingParams(temperature=0)]
    tokens = drawn(logits, params, [*DRAWS, 0.5], filtered=False)
    assert tokens == [wanted(*case) for case in zip(logits, params, [*DRAWS, 0.5], strict=True)]


def test_a_row_whose_filters_nobody_expected_has_no_token():
    """One in which nobody decodes, which keeps those of who was there before: never what memory happened to hold."""
    params = [SamplingParams(top_p=0.5), SamplingParams(top_p=0.5, temperature=0), SamplingParams()]
    first, *others = drawn(torch.randn(3, 1300), params, [0.5] * 3, filtered=False)
    assert first == TOO_FEW and all(token >= 0 for token in others)


def test_where_the_candidates_are_too_few_it_is_said():
    logits = torch.zeros(4, 2000)
    logits[3, 5] = 30
    filters = [{"top_p": 0.9}, {"min_p": 0.5}, {"top_k": 500}, {"top_p": 0.9}]
    assert drawn(logits, [SamplingParams(**f) for f in filters], [0.5] * 4) == [TOO_FEW] * 3 + [5]


def test_tokens_that_are_ruled_out_are_never_drawn():
    logits = torch.full((4, 2100), -torch.inf)
    logits[:, 1500], logits[:, 1501], logits[:, 3] = 1.0, 1.0, torch.nan
    assert set(drawn(logits, [SamplingParams()] * 4, [0.0, 0.4999, 0.5001, 0.9999999])) == {1500, 1501}
    assert drawn(torch.full((1, 9), torch.nan), [SamplingParams(temperature=0)], [0.5]) == [0]


def test_a_row_is_decided_alone():
    logits, params = torch.randn(6, 1300), [SamplingParams(top_p=0.9), SamplingParams(), SamplingParams(top_k=3)] * 2
    uniform = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2]
    whole = drawn(logits, params, uniform)
    assert whole == [drawn(logits[i : i + 1], params[i : i + 1], uniform[i : i + 1])[0] for i in range(6)]
