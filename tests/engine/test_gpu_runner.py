"""Steps on a GPU choose the tokens that a CPU chooses, though they are launched before the last ones are known.

Without a GPU the CPU stands in: what chooses tokens and leads from step to step is interpreted, the model is computed
as on a CPU (tests/kernels/gpu has its kernels), and a captured graph launches its operations again.
"""

from __future__ import annotations

import itertools
import threading
import time
from weakref import WeakSet

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Output, Request, SamplingParams
from coserve.engine.gpu import card
from coserve.engine.gpu.card import GraphPool
from coserve.engine.gpu.graphs import Kind, batch_sizes, one_of_each_tile
from coserve.engine.gpu.runner import GpuRunner
from coserve.kernels.gpu.lora import LoraStack
from tests.kernels.gpu.conftest import interpreted  # noqa: F401
from tests.kernels.gpu.oracle import DEVICE
from tests.tiny import random_adapter, tiny_checkpoint

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU stands in for a GPU: in the interpreter only")

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
CONFIG = EngineConfig(kv_cache_tokens=1024, max_num_seqs=4, max_batch_tokens=64, train_tokens=64)


class Moment:
    def __init__(self):
        self.time = time.perf_counter()

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier) -> float:
        return self.time - earlier.time


class Captured:
    """A pool whose launches are launched again one by one."""

    def capture(self, launches):
        return launches


class StandIn:
    """A CPU for a card."""

    def __init__(self, device: torch.device):
        self.device = device

    def host(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def mark(self):
        return Moment()

    def pool(self):
        return Captured()

    def give_back(self) -> None:
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def loaded(checkpoint, config: EngineConfig = CONFIG) -> Engine:
    home = checkpoint.parent / "home"  # the machine is measured once
    return Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config, home=home)


@pytest.fixture(scope="module")
def cpu(checkpoint):
    with loaded(checkpoint) as engine:
        yield engine


def on_the_gpu(checkpoint, monkeypatch, config: EngineConfig = CONFIG) -> Engine:
    monkeypatch.setattr(card, "Cuda", StandIn)
    monkeypatch.setattr("coserve.engine.runner.on_gpu", lambda tensor: True)
    engine = loaded(checkpoint, config)
    assert isinstance(engine._runner, GpuRunner)
    return engine


@pytest.fixture
def engine(checkpoint, monkeypatch, cpu):
    with on_the_gpu(checkpoint, monkeypatch) as engine:
        engine.ahead = counted(engine, "launch_ahead")
        yield engine


def counted(engine: Engine, name: str) -> list:
    """The calls of a method of the runner."""
    calls, method = [], getattr(engine._runner, name)

    def call(*args):
        calls.append(args)
        return method(*args)

    setattr(engine._runner, name, call)
    return calls


def prompt(n: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


class Collector:
    """Gathers one request's outputs; may cancel it."""

    def __init__(self, engine: Engine, ids, params: SamplingParams, model="tiny", cancel_after: int | None = None):
        self.outputs: list[Output] = []
        self.done, self.begun = threading.Event(), threading.Event()
        self.engine, self.cancel_after = engine, cancel_after
        self.request = Request(ids, params, model)
        engine.submit(self.request, self.take)

    def take(self, output: Output) -> None:
        self.outputs.append(output)
        if len(self.outputs) > 3:
            self.begun.set()
        if len(self.outputs) == self.cancel_after:
            self.engine.cancel(self.request.id)
        if output.finish_reason:
            self.done.set()

    def wait(self) -> list[Output]:
        assert self.done.wait(120)
        return self.outputs


def alone(engine: Engine, ids, params: SamplingParams, model="tiny") -> list[int]:
    return [output.token_id for output in Collector(engine, ids, params, model).wait()]


def together(engine: Engine, asked) -> list[list[int]]:
    """All submitted at once, between two steps."""
    collectors: list[Collector] = []
    engine.call(lambda: collectors.extend(Collector(engine, *one) for one in asked))
    begun = threading.Event()
    engine.call(begun.set)
    assert begun.wait(60)
    return [[output.token_id for output in c.wait()] for c in collectors]


def test_tokens_are_the_cpu_s_in_any_company(engine, cpu):
    lengths = ((5, 20), (40, 9), (17, 14), (3, 30), (30, 3), (12, 25))  # more than there are seats
    asked = [
        (prompt(n, seed), SamplingParams(temperature=0, max_tokens=most, ignore_eos=True))
        for seed, (n, most) in enumerate(lengths)
    ]
    wanted = [alone(cpu, *one) for one in asked]
    assert together(engine, asked) == wanted
    assert len(engine.ahead) > 5, "steps were launched before the last one's tokens were known"


def test_a_seed_draws_the_cpu_s_tokens(engine, cpu):
    kinds = ({}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05, "temperature": 0.7})
    asked = [
        (prompt(9, i), SamplingParams(seed=i, max_tokens=12, ignore_eos=True, **kind)) for i, kind in enumerate(kinds)
    ]
    assert together(engine, asked) == [alone(cpu, *one) for one in asked]
    assert engine.ahead


def test_penalties_and_logprobs_are_the_cpu_s(engine, cpu):
    params = SamplingParams(
        temperature=0, max_tokens=8, ignore_eos=True, logprobs=2, repetition_penalty=1.5, logit_bias={7: 3.0}
    )
    ours = Collector(engine, prompt(9), params).wait()
    wanted = Collector(cpu, prompt(9), params).wait()
    assert [o.token_id for o in ours] == [o.token_id for o in wanted]
    assert [o.logprob.logprob for o in ours] == pytest.approx([o.logprob.logprob for o in wanted], abs=1e-4)
    assert len(engine.ahead) == 6


def test_where_the_best_tokens_do_not_reach_the_whole_row_decides(engine, cpu, monkeypatch):
    monkeypatch.setattr("coserve.kernels.gpu.sampling.CANDIDATES", 4)
    params = SamplingParams(seed=3, temperature=1.5, top_p=0.99, max_tokens=12, ignore_eos=True)
    assert alone(engine, prompt(9), params) == alone(cpu, prompt(9), params)


def test_stopping_and_leaving_while_a_step_is_on_its_way(engine, cpu):
    free = alone(cpu, prompt(6), GREEDY)
    stopping = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=(free[7],))
    assert alone(engine, prompt(6), stopping) == free[: free.index(free[7]) + 1]
    leaving = Collector(engine, prompt(6), GREEDY, cancel_after=4).wait()
    assert leaving[-1].finish_reason == "cancelled" and len(leaving) < 20
    assert alone(engine, prompt(6), GREEDY) == free
    assert engine.stats().kv_blocks_used == 0


def test_with_hardly_any_cache_requests_give_way_and_lose_nothing(checkpoint, monkeypatch, cpu):
    config = EngineConfig(kv_cache_tokens=80, max_num_seqs=4, max_batch_tokens=32, train_tokens=64)
    asked = [(prompt(20, seed), GREEDY) for seed in range(4)]
    wanted = [alone(cpu, *one) for one in asked]
    with on_the_gpu(checkpoint, monkeypatch, config) as engine:
        assert together(engine, asked) == wanted
        assert engine.stats().preemptions > 0


def test_rows_of_any_adapter_and_of_none_go_through_one_step(engine, cpu, tmp_path):
    for name, rank in (("one", 4), ("two", 20)):
        path = random_adapter(tmp_path / name, cpu.model_config, rank)
        cpu.load_adapter(name, path)
        engine.load_adapter(name, path)
    short = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    asked = [(prompt(9, i), short, model) for i, model in enumerate(("tiny", "one", "two", "one"))]
    wanted = [alone(cpu, *one) for one in asked]
    assert len({tuple(alone(cpu, prompt(9), GREEDY, model)) for model in ("tiny", "one", "two")}) == 3
    assert together(engine, asked) == wanted
    assert len(engine.ahead) > 3


def test_an_adapter_that_comes_leaves_those_who_decode_where_they_are(engine, cpu, tmp_path):
    path = random_adapter(tmp_path / "late", cpu.model_config, 8)
    long = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    for each in (cpu, engine):
        each.load_adapter("late", path)
    wanted = alone(cpu, prompt(20), long), alone(cpu, prompt(9, 1), GREEDY, "late")
    first = Collector(engine, prompt(20), long)
    assert first.begun.wait(60)
    assert alone(engine, prompt(9, 1), GREEDY, "late") == wanted[1]
    assert [output.token_id for output in first.wait()] == wanted[0]


def test_what_a_capture_takes_is_no_step_s_time(engine, monkeypatch):
    now, seconds = [0.0], []

    class Stopped(Moment):
        def __init__(self):
            self.time = now[0]

    def slow(launches):
        now[0] += 9.0
        return launches

    card, predictor = engine._runner._card, type(engine._predictor)
    monkeypatch.setattr(card, "mark", Stopped)
    monkeypatch.setattr(Captured, "capture", lambda self, launches: slow(launches))
    monkeypatch.setattr(predictor, "observe", lambda self, load, took, *, riding=False: seconds.append(took))
    assert alone(engine, prompt(9), SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert now[0] > 0 and len(seconds) >= 3 and max(seconds) == 0


def test_a_request_that_has_ended_hears_nothing_of_another_one_with_its_name(engine, cpu):
    free = alone(cpu, prompt(6), GREEDY)
    stopping = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=(free[7],))
    request, outputs, done = Request(prompt(6), stopping, "tiny"), ([], []), threading.Event()

    def again(output: Output) -> None:
        outputs[0].append(output.token_id)
        if output.finish_reason:
            engine.submit(request, last)

    def last(output: Output) -> None:
        outputs[1].append(output.token_id)
        if output.finish_reason:
            done.set()

    engine.submit(request, again)
    assert done.wait(60)
    wanted = free[: free.index(free[7]) + 1]
    assert outputs == (wanted, wanted)


def test_who_decodes_for_long_was_seen_lately(engine):
    """Though no step of its was planned from the ground up."""
    seen = []
    engine.submit(Request(prompt(6), GREEDY, "tiny"), lambda output: seen.append(engine._steps.size._last_seen[0]))
    while len(seen) < 20:
        time.sleep(0.01)
    assert len(engine.ahead) > 10 and len(set(seen)) > 10


def test_an_adapter_that_is_unloaded_makes_room_for_the_next_one(engine, cpu, tmp_path):
    slots = engine._runner._adapters

    def load(name: str, rank: int) -> None:
        engine.load_adapter(name, random_adapter(tmp_path / f"{name}-{rank}", cpu.model_config, rank))

    short = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    load("first", 4)
    alone(engine, prompt(5), short, "first")
    load("second", 5)
    alone(engine, prompt(5), short, "second")
    assert len(slots._adapters) == 2
    engine.unload_adapter("first")
    load("second", 6)  # trained anew
    alone(engine, prompt(5), short, "second")
    assert len(slots._adapters) == 1 and not slots._leaving
    alone(engine, prompt(5), short, "second")
    assert slots._adapters == [engine._adapters["second"].layers]


def test_a_share_pays_for_the_tokens_that_it_got_alone(engine, cpu):
    """Not for the one that was launched ahead when it stopped."""
    free = alone(cpu, prompt(6), GREEDY)
    stopping = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=(free[7],))
    got, served, done = [], [], threading.Event()

    def stays(output: Output) -> None:
        if output.finish_reason:
            served.append(engine.scheduler.counters[0].served("stops"))
            done.set()

    def both() -> None:
        engine.submit(Request(prompt(9), GREEDY, "tiny", share="stays"), stays)
        engine.submit(Request(prompt(6), stopping, "tiny", share="stops"), got.append)

    engine.call(both)  # one that comes later has as much behind it as the other
    assert done.wait(60)
    assert engine.ahead and got[-1].finish_reason == "stop"
    assert served == [6 + len(got)]


def test_whatever_a_graph_will_launch_is_compiled_before_it_is_captured(engine, monkeypatch):
    """With adapters, too: a batch of more rows takes other kernels, and none can be compiled in a capture."""
    assert one_of_each_tile(batch_sizes(64)) == [16, 32, 64] and one_of_each_tile(batch_sizes(20)) == [16, 20]
    graphs, run = engine._runner._graphs, []
    monkeypatch.setattr(graphs, "sizes", batch_sizes(64))
    monkeypatch.setattr(graphs, "_step", run.append)
    graphs.warm_up()
    assert {kind.rows for kind in run} == {*batch_sizes(64)}
    run.clear()
    graphs.forget_adapted()
    assert [kind.rows for kind in run] == [16, 32, 64] and all(kind.adapted for kind in run)


def test_rows_that_decode_beside_a_prompt_are_warmed_up_as_well(engine, monkeypatch):
    """Their attention is another kernel than that of a step in which all decode."""
    runner, mixed = engine._runner, []
    monkeypatch.setattr(runner._graphs, "warm_up", lambda: None)
    compute = runner._compute
    monkeypatch.setattr(runner, "_compute", lambda batch, ride: (mixed.append(batch.layout), compute(batch, ride))[1])
    runner.warm_up(range(engine.scheduler.pool.total), 16, lambda load, seconds: None)
    assert (1, 2) in {(layout.decoding, layout.segments.shape[0]) for layout in mixed}


def test_an_adapter_for_which_memory_does_not_reach_leaves_the_others_as_they_were(engine, cpu, tmp_path, monkeypatch):
    short = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for name, rank in (("small", 4), ("large", 8)):
        path = random_adapter(tmp_path / name, cpu.model_config, rank)
        for each in (cpu, engine):
            each.load_adapter(name, path)
    assert alone(engine, prompt(5), short, "small") == alone(cpu, prompt(5), short, "small")

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(LoraStack, "of", full)
        failed = Collector(engine, prompt(5), short, "large").wait()
        assert failed[-1].finish_reason == "error"
    for name in ("large", "small"):
        assert alone(engine, prompt(5), short, name) == alone(cpu, prompt(5), short, name)


class Graphs:
    """PyTorch's, as far as pools go: one takes no graph again after its last one is gone."""

    def __init__(self, monkeypatch):
        living, used, handles = WeakSet(), set(), itertools.count()

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                assert pool not in used or pool in {graph.pool for graph in living}, "the pool has ended"
                used.add(pool)
                self.pool = pool

            def capture_end(self):
                living.add(self)

            def replay(self):
                pass

        self._living = living
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))

    @property
    def pools(self) -> set[int]:
        return {graph.pool for graph in self._living}


def test_pools_of_graphs_do_not_pile_up_when_adapters_come_and_go(engine, monkeypatch):
    """Those without an adapter stay, and some are captured between any two adapters."""
    living, graphs = Graphs(monkeypatch), engine._runner._graphs
    monkeypatch.setattr(graphs, "_pools", {adapted: GraphPool() for adapted in (False, True)})
    monkeypatch.setattr(graphs, "_step", lambda kind: kind)
    for rows in range(1, 9):
        graphs.capture(Kind(rows, 256))
        graphs.capture(Kind(rows, 256, adapted=True))
        assert len(living.pools) == 2
        graphs.forget_adapted()
        assert len(living.pools) == 1
    graphs.forget()
    assert not living.pools


def test_a_pool_whose_first_capture_fails_is_not_taken_again(monkeypatch):
    living, pool = Graphs(monkeypatch), GraphPool()

    def full():
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        pool.capture(full)
    launch = pool.capture(lambda: 7)
    assert launch() == 7 and len(living.pools) == 1


def test_no_part_of_the_cache_is_kept_for_training_which_needs_none(engine, cpu):
    assert not engine.train_blocks and engine.cache.blocks == engine.scheduler.pool.total + 1
    assert len(cpu.train_blocks) == 4
