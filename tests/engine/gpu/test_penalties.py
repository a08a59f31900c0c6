"""Penalties and logprobs in captured steps on a GPU: it has counted what it chose."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Output, Request, SamplingParams
from coserve.engine.active import ActiveRequest
from coserve.kernels.gpu.penalties import PROMPT
from tests.engine.gpu.asking import one_after_the_other
from tests.tiny import tiny_checkpoint

KINDS = (
    {"temperature": 0, "frequency_penalty": 1.5, "logprobs": 20},
    {"temperature": 0.8, "seed": 1, "repetition_penalty": 1.3, "top_p": 0.8},
    {"temperature": 0, "presence_penalty": -2.0, "logit_bias": {7: 100.0}, "logprobs": 0},
    {"temperature": 1.0, "seed": 2},
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3", dtype=torch.bfloat16)
    with Engine.from_pretrained(path, device="cuda", name="tiny", config=EngineConfig(kv_cache_tokens=20_000)) as made:
        yield made


def test_a_gpu_has_counted_what_requests_have_generated(engine):
    """One after the other comes, so that there are steps of all kinds."""
    held: list[ActiveRequest] = []

    def hold(output: Output) -> None:
        held.append(engine._requests._by_id[output.request_id])  # one that has ended has no slot, else

    requests = [
        Request(tuple(range(3 + n, 60 + n)), SamplingParams(max_tokens=100, ignore_eos=True, **kind), "tiny")
        for n, kind in enumerate(KINDS)
    ]
    answers = one_after_the_other(engine, requests, 20, hold)

    slots = engine._runner._penalties
    holders = {request.request.id: holder for request, holder in slots._holders.items()}
    assert holders.keys() == {request.id for request in requests[:3]}
    for request in requests[:3]:
        seen = slots.table.seen[holders[request.id].slot].cpu()
        tokens = Counter(output.token_id for output in answers[request.id])
        assert {token: int(seen[token]) & (PROMPT - 1) for token in tokens} == tokens and tokens.total() == 100
        assert int((seen & (PROMPT - 1)).sum()) == 100
        assert set(torch.nonzero(seen >= PROMPT).flatten().tolist()) == set(request.prompt)

    assert {output.token_id for output in answers[requests[2].id]} == {7}
    for output in answers[requests[0].id]:
        values = [value for _, _, value in output.logprob.top]
        assert len(values) == 20 and values == sorted(values, reverse=True) and values[0] >= output.logprob.logprob
