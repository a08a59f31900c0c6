"""Steps with prompts as graphs: whatever a step lacks of what its graph is for, its rows get what they get alone."""

from __future__ import annotations

import random
import time

import pytest
import torch

from coserve.engine import SamplingParams
from coserve.engine.batch import Batch
from coserve.engine.gpu.prompt_graphs import MOST_ROWS, PromptGraphs, PromptKind
from coserve.engine.segment import Segment
from coserve.kernels import KVCache, gpu
from tests.engine.test_gpu_runner import (  # noqa: F401 (fixtures)
    GREEDY,
    Captured,
    StandIn,
    alone,
    checkpoint,
    cpu,
    engine,
    prompt,
    together,
)
from tests.kernels.gpu.conftest import interpreted  # noqa: F401
from tests.kernels.gpu.oracle import DEVICE
from tests.kernels.gpu.test_loaded import loaded as loaded_decoder
from tests.tiny import random_adapter, tiny_checkpoint

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU stands in for a GPU: in the interpreter only")

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
BLOCKS, SCRATCH, REQUESTS = 60, 60, 20


def random_batch(rng: random.Random, rows: int) -> Batch:
    """Some who decode and some prompts, or parts of them, in any order; of `rows` rows at most."""
    free, segments, left = rng.sample(range(BLOCKS), BLOCKS), [], rows
    for _ in range(rng.randint(1, REQUESTS)):
        start = rng.choice((0, rng.randrange(40)))
        decodes = rng.random() < 0.5
        length = 1 if decodes else rng.randint(1, 20)
        if length > left or -(-(start + length) // 16) > len(free):
            continue
        blocks = [free.pop() for _ in range(-(-(start + length) // 16))]
        tokens, sample = [rng.randrange(3, 400) for _ in range(length)], decodes or rng.random() < 0.7
        segments.append(Segment("decode" if decodes else "prefill", tokens, start, blocks, sample=sample))
        left -= length
    return Batch.of(segments or [Segment("prefill", [5], 0, [3], sample=True)])


@pytest.fixture(scope="module", params=["bf16", "int4"])
def decoder(request, tmp_path_factory):
    path = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3", dtype=torch.bfloat16, **SIZES)
    return loaded_decoder(path, request.param)


def filled_cache(decoder) -> KVCache:
    """As after other requests."""
    c, generator = decoder.config, torch.Generator().manual_seed(0)
    cache = KVCache(c.num_hidden_layers, BLOCKS + 1, c.num_key_value_heads, c.head_dim, decoder.dtype, token_major=True)
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return cache


def near(actual: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((actual.float() - wanted.float()).norm() <= 0.02 * wanted.float().norm())


def test_rows_get_what_they_get_operation_by_operation(decoder, monkeypatch):
    """With the GPU's kernels, interpreted: in graphs that were just used for other steps, or are used first."""
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(decoder, "_native", None)  # a CPU's
    cache, same = filled_cache(decoder), filled_cache(decoder)
    graphs = PromptGraphs(decoder, cache, StandIn(torch.device("cpu")), rows=REQUESTS, blocks=4, scratch=SCRATCH)
    rng, kinds = random.Random(16), set()
    for rows in (40, 12, 33, 9):
        batch = random_batch(rng, rows)
        kind = graphs.kind(batch, None)
        kinds.add(kind)
        with torch.inference_mode():
            hidden = decoder.forward(batch.token_ids, batch.layout, same)[batch.logit_rows]
            wanted = decoder.logits(hidden) if len(hidden) else hidden
        graphs.capture(kind, batch)
        logits = graphs.run(kind, batch)
        assert logits.shape[0] == len(wanted) and (not len(wanted) or near(logits, wanted))
        for ours, theirs in zip((*cache.keys, *cache.values), (*same.keys, *same.values), strict=True):
            assert near(ours[:SCRATCH], theirs[:SCRATCH]), "others' keys and values are as they were"
    assert len(kinds) > 2


@pytest.mark.parametrize("seed", range(20))
def test_what_the_gpu_is_told_is_the_batch_and_nothing_of_the_one_before(seed):
    graphs = PromptGraphs.__new__(PromptGraphs)
    graphs._scratch, graphs._requests, graphs._resting_until = SCRATCH, [0, REQUESTS], 0.0
    graphs._staged = torch.full((20_000,), 1 << 29, dtype=torch.int32)
    rng = random.Random(seed)
    for rows in (200, 30, 64, 512):
        batch = random_batch(rng, rows)
        kind, layout = graphs.kind(batch, None), batch.layout
        used = graphs._staged[: graphs._stage(kind, batch)]
        assert (used < 1 << 29).all(), "nothing is left as it was"
        token_ids, positions, slots, segments, tiles, sampled, tables = kind.cut(used)
        n, steps, prompts = batch.rows, layout.decoding, len(batch.segments) - layout.decoding
        assert n <= kind.rows <= max(32, 2 * n) and steps <= kind.decoding and prompts <= kind.prompts
        assert torch.equal(token_ids[:n], batch.token_ids) and not token_ids[n:].any()
        assert torch.equal(positions[:n], layout.positions) and not positions[n:].any()
        assert torch.equal(slots[:n], layout.slots) and (slots[n:] == SCRATCH * 16).all()
        segments = segments.view(-1, 4)
        decoding, others = segments[: kind.decoding], segments[kind.decoding :]
        assert torch.equal(decoding[:steps], layout.segments[:steps]) and (decoding[steps:, 2] == -1).all()
        assert torch.equal(others[:prompts], layout.segments[steps:]) and not others[prompts:].any()
        assert torch.equal(tiles.view(-1, 4)[: len(layout.tiles)], layout.tiles)
        assert torch.equal(sampled[: len(batch.logit_rows)], batch.logit_rows) and (sampled < max(1, n)).all()
        assert torch.equal(tables, layout.tables)


def test_steps_that_no_graph_is_for():
    graphs = PromptGraphs.__new__(PromptGraphs)
    graphs._requests, graphs._resting_until = [0, 16, 40], 0.0

    def kind(*segments: Segment) -> PromptKind | None:
        return graphs.kind(Batch.of(segments), None)

    def of(rows: int, **options) -> Segment:
        return Segment("prefill", [5] * rows, 0, range(100), **options)

    decoding = Segment("decode", [5], 3, [2], sample=True)
    assert kind(of(MOST_ROWS, sample=True)) == PromptKind(MOST_ROWS, 0, 4, 16, 2048)
    assert kind(of(MOST_ROWS)) == PromptKind(MOST_ROWS, 0, 4, 0, 2048), "a part of a prompt: nothing is chosen"
    assert kind(*[decoding] * 17, of(16)) == PromptKind(64, 40, 4, 40, 2048)
    assert kind(of(MOST_ROWS + 1)) is None
    assert kind(*[of(2)] * 32) is not None and kind(*[of(2)] * 33) is None
    assert kind(*[decoding] * 20, *[of(2)] * 21) is None
    assert kind(of(9, adapter=())) is None


def test_prompts_take_graphs_and_those_with_adapters_do_not(engine, cpu, tmp_path):  # noqa: F811
    graphs = engine._runner._prompts
    run, ran = graphs.run, []
    graphs.run = lambda kind, batch: (ran.append(kind), run(kind, batch))[1]
    asked = [(prompt(n, n), GREEDY) for n in (5, 30, 60)]
    wanted = [alone(cpu, *one) for one in asked]
    assert [alone(engine, *one) for one in asked] == wanted
    assert {kind.rows for kind in ran} == {32, 64} and not any(kind.decoding for kind in ran)
    assert together(engine, asked) == wanted
    ran.clear()
    path = random_adapter(tmp_path / "one", cpu.model_config, 4)
    for each in (cpu, engine):
        each.load_adapter("one", path)
    assert alone(engine, prompt(9), GREEDY, "one") == alone(cpu, prompt(9), GREEDY, "one")
    assert not ran


def test_what_finds_no_memory_to_be_captured_has_nobody_give_way(engine, cpu, monkeypatch):  # noqa: F811
    graphs = engine._runner._prompts
    graphs.forget()

    class Full(Captured):
        def capture(self, launches):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(graphs, "_pool", Full())
    gave = []
    monkeypatch.setattr(engine._runner, "give_way", lambda: gave.append(1))
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for seed in range(3):
        assert alone(engine, prompt(9, seed), params) == alone(cpu, prompt(9, seed), params)
    assert not gave and graphs._resting_until > time.perf_counter()


def test_what_cannot_be_captured_is_launched_one_by_one(engine, cpu, monkeypatch, caplog):  # noqa: F811
    graphs = engine._runner._prompts
    graphs.forget()

    class Refusing(Captured):
        def capture(self, launches):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_pool", Refusing())
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for rows in (9, 40, 12):
        assert alone(engine, prompt(rows), params) == alone(cpu, prompt(rows), params)
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once"


def test_where_memory_is_short_there_are_none_for_a_while(engine, monkeypatch):  # noqa: F811
    graphs, now = engine._runner._prompts, [100.0]
    monkeypatch.setattr("coserve.engine.gpu.prompt_graphs.time.perf_counter", lambda: now[0])
    batch = Batch.of([Segment("prefill", [5, 6], 0, [1], sample=True)])
    assert graphs.kind(batch, None) is not None
    engine._runner.give_way()
    assert graphs.kind(batch, None) is None and not graphs._captured
    now[0] += 61
    assert graphs.kind(batch, None) is not None
