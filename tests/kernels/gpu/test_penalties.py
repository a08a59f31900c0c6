"""Penalties and biases are those of the engine's sampler, and of transformers; tokens are counted in their own slot."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from coserve.engine import Request, SamplingParams, sampler
from coserve.engine.active import ActiveRequest
from coserve.engine.gpu.penalties import PenaltySlots
from coserve.kernels.gpu.penalties import NONE, PROMPT, Penalties
from tests.kernels.gpu.oracle import DEVICE

VOCAB = 2500  # two chunks, and a part of one
EVERYTHING = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "logit_bias": {5: 4.0, 900: -100.0, 2499: 100.0},
}
KINDS = [
    EVERYTHING,
    {"repetition_penalty": 0.6},
    {"presence_penalty": -2.0, "frequency_penalty": -0.7},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 1.5},
    {"logit_bias": {0: -3.5}},
]


def active(params: SamplingParams, prompt=(3, 3, 77, 2499), generated=()) -> ActiveRequest:
    request = ActiveRequest(Request(tuple(prompt), params, "m"), None, None, 100, frozenset(), print, 0.0)
    for token in generated:
        request.append(token)
    return request


def held(*requests: ActiveRequest) -> tuple[Penalties, torch.Tensor]:
    """A table with these in it, and their slots."""
    penalties = PenaltySlots(len(requests) + 1, VOCAB, torch.device(DEVICE))
    penalties.hold(requests)
    return penalties.table, torch.tensor([penalties.slot(r) for r in requests], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_asked_is_the_sampler_s(dtype):
    torch.manual_seed(0)
    generated = (77, 5, 77, 1024, 1023, 2048)
    requests = [active(SamplingParams(**kind), generated=generated) for kind in KINDS]
    logits = (torch.randn(len(requests), VOCAB) * 5).to(dtype)
    table, slots = held(*requests)
    shaped = table.shape(logits.to(DEVICE), slots).cpu()
    for row, request, ours in zip(logits.float(), requests, shaped, strict=True):
        wanted = sampler._shape(row, request)
        assert torch.allclose(ours, wanted, rtol=1e-6, atol=1e-6)
        assert torch.equal(ours != row, wanted != row)


def test_repetition_is_transformers():
    torch.manual_seed(1)
    request = active(SamplingParams(repetition_penalty=1.7), generated=(9, 9, 2300))
    logits = torch.randn(1, VOCAB)
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([request.tokens]), logits.clone())
    assert torch.allclose(held(request)[0].shape(logits.to(DEVICE), held(request)[1]).cpu(), wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_asked_for_nothing_stay_as_they_are(dtype):
    """To the bit, whatever is beside them; and so do the logits themselves."""
    request = active(SamplingParams(**EVERYTHING), generated=(7,))
    logits = torch.randn(3, VOCAB, device=DEVICE).to(dtype)
    logits[0, 3], logits[0, 77], logits[2, 2499] = torch.nan, -torch.inf, torch.inf
    before = logits.clone()
    table, (slot,) = held(request)
    slots = torch.tensor([NONE, int(slot), NONE], dtype=torch.int32, device=DEVICE)
    shaped = table.shape(logits, slots)
    assert torch.equal(logits.nan_to_num(7.7), before.nan_to_num(7.7))
    assert torch.equal(shaped[[0, 2]].view(torch.int32), before[[0, 2]].float().view(torch.int32))
    assert not torch.equal(shaped[1], before[1].float())


def test_what_is_ruled_out_stays_ruled_out():
    request = active(SamplingParams(**EVERYTHING), prompt=(3, 4), generated=(5,))
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, 900] = torch.nan
    table, slots = held(request)
    shaped = table.shape(logits.to(DEVICE), slots).cpu()
    assert shaped[0, 900].isnan() and (shaped[0, :900] == -torch.inf).all() and (shaped[0, 901:] == -torch.inf).all()


def test_each_row_counts_its_own_token():
    table = Penalties.empty(4, VOCAB, DEVICE)
    table.seen[2, 9] = PROMPT
    before = table.seen.clone()
    slots = torch.tensor([2, NONE, 0, 1], dtype=torch.int32, device=DEVICE)
    history = [(9, 8, 7, -1), (9, 8, 2499, 0), (3, 8, 7, -1)]
    for tokens in history:
        table.count(slots, torch.tensor(tokens, device=DEVICE))
    for slot, counts in ((2, Counter([9, 9, 3])), (0, Counter([7, 2499, 7])), (1, Counter([0]))):
        for token, count in counts.items():
            before[slot, token] += count
    assert torch.equal(table.seen, before)


def test_it_takes_the_bytes_that_are_reserved():
    table = Penalties.empty(3, VOCAB, "cpu")
    assert Penalties.bytes(3, VOCAB) == sum(t.nbytes for t in (table.seen, table.biases, table.strengths))
