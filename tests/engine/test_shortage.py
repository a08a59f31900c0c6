"""A GPU's memory does not suffice for a step: what gives way, in which order, and that everybody else is served on."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

from coserve.engine import Output, Request, SamplingParams
from coserve.engine.shortage import Shortage
from coserve.errors import OutOfMemory
from coserve.kernels.memory import is_out_of_memory
from tests.engine.test_gpu_runner import (  # noqa: F401 (fixtures)
    GREEDY,
    Captured,
    Collector,
    alone,
    checkpoint,
    cpu,
    engine,
    prompt,
    random_adapter,
    together,
)
from tests.kernels.gpu.conftest import interpreted  # noqa: F401
from tests.kernels.gpu.oracle import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU stands in for a GPU: in the interpreter only")

ASKED = [
    (prompt(n, seed), SamplingParams(temperature=0, max_tokens=most, ignore_eos=True))
    for seed, (n, most) in enumerate(((5, 9), (40, 7), (30, 8), (12, 10), (45, 3)))
]


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Memory:
    """Lets the decoder compute while `enough(rows)`; and what was done meanwhile."""

    def __init__(self, engine):  # noqa: F811
        self.rows: list[int] = []  # of each forward that was tried
        self.enough = lambda rows: True
        self.given_back = 0
        forward, card = engine.decoder.forward, engine._runner._card

        def limited(token_ids, *args):
            self.rows.append(token_ids.shape[0])
            if not self.enough(token_ids.shape[0]):
                out_of_memory()
            return forward(token_ids, *args)

        def give_back() -> None:
            self.given_back += 1

        engine.decoder.forward, card.give_back = limited, give_back


@pytest.fixture
def memory(engine):  # noqa: F811
    return Memory(engine)


@pytest.fixture(scope="module")
def wanted(cpu):  # noqa: F811
    return [alone(cpu, *one) for one in ASKED]


class Job:
    """A job that may keep memory which it can do without."""

    finished, begun = False, True

    def __init__(self, *, keeps: bool = False):
        self.keeps, self.gave, self.error = keeps, 0, None
        self.over = threading.Event()

    def ride(self, max_rows: int) -> None:
        return None

    def next_slice(self, seconds: float) -> None:
        return None

    def give_way(self) -> bool:
        kept, self.keeps = self.keeps, False
        self.gave += kept
        return kept

    def failed(self, error: Exception) -> None:
        self.error = error
        self.over.set()


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13])
def test_a_step_that_found_no_memory_once_is_tried_again(engine, memory, wanted, number):  # noqa: F811
    memory.enough = lambda rows: len(memory.rows) != number
    assert together(engine, ASKED) == wanted
    assert engine.stats().kv_blocks_used == 0
    assert memory.given_back == 1 or engine.ahead, "nothing has to give way for a step that was ahead of its time"


def test_when_it_fails_again_steps_have_fewer_rows(engine, memory, wanted):  # noqa: F811
    memory.enough = lambda rows: rows <= 20
    assert together(engine, ASKED) == wanted
    tried = Counter(memory.rows)
    assert tried[64] == 2 and max(rows for rows in tried if rows <= 20) > 4


def test_whoever_decodes_and_some_of_a_prompt_have_room_in_any_step():
    shortage = Shortage(100)
    assert shortage.most_rows(30, now=0.0) == 100
    assert shortage.make_smaller(34, 17, now=0.0) and not shortage.make_smaller(17, 17, now=0.0)
    assert shortage.most_rows(10, now=1.0) == 17 and shortage.most_rows(30, now=1.0) == 30
    assert shortage.most_rows(200, now=1.0) == 100
    assert shortage.most_rows(10, now=1.0 + Shortage.SECONDS) == 100


def test_steps_are_as_large_as_ever_after_a_while(engine, memory, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Shortage, "SECONDS", 0.0)
    memory.enough = lambda rows: len(memory.rows) > 2
    together(engine, ASKED)
    assert memory.rows[:3] == [64, 64, 64]


def test_requests_whose_prompts_cannot_be_computed_fail_and_those_that_decode_go_on(engine, memory, cpu):  # noqa: F811
    long = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    first = Collector(engine, prompt(6), long)
    assert first.begun.wait(60)
    memory.enough = lambda rows: rows < 5
    error = Collector(engine, prompt(40, 1), GREEDY).wait()[-1].error
    assert isinstance(error, OutOfMemory) and error.status == 503
    assert "memory" in str(error) and "max_batch_tokens" in str(error) and "kv_cache_tokens" in str(error)
    assert [output.token_id for output in first.wait()] == alone(cpu, prompt(6), long)
    memory.enough = lambda rows: True
    assert alone(engine, prompt(40, 1), GREEDY) == alone(cpu, prompt(40, 1), GREEDY)
    assert engine.stats().kv_blocks_used == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_capture_that_finds_no_memory_is_tried_again(engine, cpu, wanted, monkeypatch, number):  # noqa: F811
    """The second one for a step that was ahead: its context is the first of more than 256 keys."""
    captures, drawn = [], SamplingParams(seed=1, top_k=20, max_tokens=5, ignore_eos=True)

    def capture(self, launches):
        captures.append(launches)
        return out_of_memory() if len(captures) == number else launches

    monkeypatch.setattr(Captured, "capture", capture)
    for one in ((prompt(250), GREEDY), (prompt(9), drawn)):
        assert alone(engine, *one) == alone(cpu, *one)
    assert together(engine, ASKED) == wanted
    assert len(captures) > number and engine.ahead


def test_without_room_for_any_graph_requests_fail_and_later_ones_do_not(engine, cpu, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setattr(Captured, "capture", out_of_memory)
        collectors = [Collector(engine, *one) for one in ASKED]
        assert all(isinstance(c.wait()[-1].error, OutOfMemory) for c in collectors)
        assert all(len(c.outputs) > 1 for c in collectors), "each got the token of its prompt"
    assert engine.stats().kv_blocks_used == 0
    assert alone(engine, prompt(9), GREEDY) == alone(cpu, prompt(9), GREEDY)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_adapters_are_laid_out_again_after_a_step_failed(engine, memory, cpu, tmp_path, number):  # noqa: F811
    """Wherever it did: also while their kernels were compiled, or with a graph that reads the old ones."""
    names = ("one", "two")
    for rank, name in enumerate(names, 4):
        path = random_adapter(tmp_path / name, cpu.model_config, rank)
        cpu.load_adapter(name, path)
        engine.load_adapter(name, path)
    wanted = {name: alone(cpu, prompt(9), GREEDY, name) for name in names}
    assert alone(engine, prompt(9), GREEDY, "one") == wanted["one"]
    before = len(memory.rows)
    memory.enough = lambda rows: len(memory.rows) != before + number
    assert alone(engine, prompt(9), GREEDY, "two") == wanted["two"]
    assert alone(engine, prompt(9), GREEDY, "one") == wanted["one"]
    assert len(memory.rows) > before + number and memory.given_back <= 1


def test_a_job_gives_up_what_it_keeps_before_steps_get_smaller(engine, memory, wanted):  # noqa: F811
    job = Job(keeps=True)
    engine.attach(job)
    memory.enough = lambda rows: job.gave > 0
    assert together(engine, ASKED) == wanted
    assert memory.rows[:2] == [64, 64] and job.gave == 1 and job.error is None


def test_jobs_fail_before_any_request_does(engine, memory, wanted):  # noqa: F811
    jobs = Job(), Job()
    for job in jobs:
        engine.attach(job)
    memory.enough = lambda rows: all(job.over.is_set() for job in jobs)
    assert together(engine, ASKED) == wanted
    assert all(isinstance(job.error, OutOfMemory) and "memory" in str(job.error) for job in jobs)


def test_a_job_that_has_yet_to_begin_has_no_memory_to_give(engine, memory):  # noqa: F811
    first, waiting = Job(), Job()
    waiting.begun = False
    for job in (first, waiting):
        engine.attach(job)
    memory.enough = lambda rows: False
    last = Collector(engine, prompt(9), GREEDY).wait()[-1]
    assert isinstance(last.error, OutOfMemory) and isinstance(first.error, OutOfMemory) and waiting.error is None


def test_a_share_does_not_pay_for_steps_that_found_no_memory(engine, memory):  # noqa: F811
    memory.enough = lambda rows: len(memory.rows) not in (1, 4, 6)
    served, done = [], threading.Event()

    def take(output: Output) -> None:
        served.append(engine.scheduler.counters[0].served("mine"))
        if output.finish_reason:
            done.set()

    engine.submit(Request(prompt(9), GREEDY, "tiny", share="mine"), take)
    assert done.wait(60)
    assert len(memory.rows) > 6 and served[-1] == 9 + 20


def test_what_is_out_of_memory():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))
