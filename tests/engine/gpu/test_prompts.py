"""Steps with prompts in graphs on a GPU: their tokens are those of the same operations, launched one by one."""

from __future__ import annotations

import math

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Request, SamplingParams
from tests.engine.gpu.asking import one_after_the_other
from tests.tiny import tiny_checkpoint

LENGTHS = (5, 40, 130, 300, 1, 440, 77, 20)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3", dtype=torch.float32)
    config = EngineConfig(kv_cache_tokens=40_000)
    with Engine.from_pretrained(path, device="cuda", dtype="float32", name="tiny", config=config) as made:
        yield made


def asked() -> list[Request]:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, logprobs=0)
    return [
        Request(tuple(3 + (7 * n + i) % 400 for i in range(length)), params, "tiny") for n, length in enumerate(LENGTHS)
    ]


def test_tokens_are_those_of_operations_launched_one_by_one(engine, caplog):
    graphs = engine._runner._prompts
    at_the_start = set(graphs._captured)
    in_graphs = one_after_the_other(engine, asked(), 5)
    captured = set(graphs._captured) - at_the_start
    assert len({kind.rows for kind in captured}) > 1 and any(kind.decoding for kind in captured)
    assert not caplog.records, "all could be captured"
    graphs._resting_until = math.inf
    one_by_one = one_after_the_other(engine, asked(), 5)
    for ours, wanted in zip(in_graphs.values(), one_by_one.values(), strict=True):
        assert [output.token_id for output in ours] == [output.token_id for output in wanted]
        values = [output.logprob.logprob for output in wanted]
        assert [output.logprob.logprob for output in ours] == pytest.approx(values, abs=1e-3)
