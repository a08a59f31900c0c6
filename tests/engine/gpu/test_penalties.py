"""Penalties and logprobs in captured steps on a GPU: it has counted what it chose."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Output, Request, SamplingParams
from coserve.engine.active import ActiveRequest
from coserve.kernels.gpu.penalties import PROMPT
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
    answers: dict[str, list[Output]] = {}
    held: list[ActiveRequest] = []
    over, some = threading.Semaphore(0), threading.Semaphore(0)

    def take(output: Output) -> None:
        if not answers[output.request_id]:
            held.append(engine._requests._by_id[output.request_id])  # one that has ended has no slot, else
        answers[output.request_id].append(output)
        (over if output.finish_reason else some).release()

    requests = [
        Request(tuple(range(3 + n, 60 + n)), SamplingParams(max_tokens=100, ignore_eos=True, **kind), "tiny")
        for n, kind in enumerate(KINDS)
    ]
    for request in requests:
        answers[request.id] = []
        engine.submit(request, take)
        assert all(some.acquire(timeout=120) for _ in range(20))
    assert all(over.acquire(timeout=120) for _ in requests)

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
