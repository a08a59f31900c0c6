"""Sampling against transformers' own warpers: the same tokens remain possible, with the same probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from coserve.engine import Request, SamplingParams
from coserve.engine.active import ActiveRequest
from coserve.engine.sampler import _candidates, sample
from coserve.errors import InvalidRequest

VOCAB = 700


def active(params: SamplingParams, prompt=(1, 2, 3), generated=()) -> ActiveRequest:
    request = ActiveRequest(Request(tuple(prompt), params, "m"), None, None, 100, frozenset(), print, 0.0)
    for token in generated:
        request.append(token)
    return request


def logits(seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def warped(row: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution by transformers."""
    scores, ids = row.unsqueeze(0), torch.tensor([[1]])
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return scores.softmax(-1)[0]


PARAMS = [
    SamplingParams(temperature=0.7),
    SamplingParams(top_k=5),
    SamplingParams(top_k=400, top_p=0.8),
    SamplingParams(top_p=0.5),
    SamplingParams(temperature=2.0, top_p=0.999),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=1.5, top_p=0.95, min_p=0.001),
]


@pytest.mark.parametrize("params", PARAMS[1:], ids=str)
def test_the_candidates_are_those_of_transformers(params):
    for seed in range(5):
        row = logits(seed)
        wanted = warped(row, params)
        probs = (row / params.temperature).softmax(-1)
        kept, ids = _candidates(probs, params.top_k or VOCAB, params.top_p, params.min_p)
        assert set(ids.tolist()) == set(torch.nonzero(wanted).flatten().tolist())
        assert torch.allclose(kept / kept.sum(), wanted[ids], atol=1e-5)


def test_tokens_are_drawn_with_their_probabilities():
    params = SamplingParams(temperature=0.8, top_k=6, seed=1)
    request, row = active(params), logits(3)
    wanted = warped(row, params)
    counts = torch.zeros(VOCAB)
    for _ in range(4000):
        token = sample(row.unsqueeze(0), [request])[0].token_id
        counts[token] += 1
        request.append(token)
    assert (counts / 4000 - wanted).abs().max() < 0.03


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(PARAMS), st.integers(0, 5))
def test_a_row_is_sampled_the_same_in_any_company(seed, params, others):
    params = SamplingParams(**{**params.__dict__, "seed": seed})
    row = logits(seed % 100)
    alone = sample(row.unsqueeze(0), [active(params)])[0].token_id
    crowd = torch.stack([*(logits(200 + i) for i in range(others)), row])
    company = [active(SamplingParams(seed=i)) for i in range(others)]
    assert sample(crowd, [*company, active(params)])[-1].token_id == alone


def test_greedy_is_the_argmax_and_a_bias_moves_it():
    row = logits(4)
    best = int(row.argmax())
    assert sample(row.unsqueeze(0), [active(SamplingParams(temperature=0))])[0].token_id == best
    biased = SamplingParams(temperature=0, logit_bias={best: -100, 17: 100})
    assert sample(row.unsqueeze(0), [active(biased)])[0].token_id == 17


def test_penalties_are_openais_and_transformers():
    row, generated = logits(5), (9, 9, 9, 11)
    wanted = row.clone()
    wanted[9] -= 0.5 + 3 * 0.25
    wanted[11] -= 0.5 + 0.25
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25, logprobs=0)
    assert sample(row.unsqueeze(0), [active(params, generated=generated)])[0].token_id == int(wanted.argmax())
    params = SamplingParams(temperature=0, repetition_penalty=3.0)
    for seed in range(20):
        row = logits(seed)
        best = int(row.argmax())
        ids = torch.tensor([[1, 2, 3, best]])
        wanted = RepetitionPenaltyLogitsProcessor(3.0)(ids, row.unsqueeze(0).clone())[0]
        chosen = sample(row.unsqueeze(0), [active(params, generated=(best,))])[0].token_id
        assert chosen == int(wanted.argmax())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -1),
        ("top_k", -2),
        ("max_tokens", 0),
        ("presence_penalty", 3),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("stop", ("",)),
        ("logprobs", 21),
        ("logit_bias", {1: 101}),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field
