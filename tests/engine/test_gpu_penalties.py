"""Penalties, biases and logprobs on a GPU: what it has counted is what the requests have generated, whatever happens.

Before every step that shapes logits each row's slot is compared with what the CPU would make of the request.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Request, SamplingParams, sleep
from coserve.engine.active import ActiveRequest
from coserve.engine.gpu import choice
from coserve.engine.gpu.choice import Asked
from coserve.engine.gpu.penalties import PenaltySlots
from coserve.engine.sampler import sample_row
from coserve.kernels import paged
from coserve.kernels.device import CPU
from coserve.kernels.gpu import decode
from coserve.kernels.gpu.penalties import NONE, PROMPT, Penalties
from coserve.models import loading
from coserve.models.placement import OnGpu
from tests.engine.test_gpu_runner import (  # noqa: F401 (fixtures)
    Captured,
    Collector,
    alone,
    checkpoint,
    counted,
    cpu,
    engine,
    loaded,
    on_the_gpu,
    prompt,
    random_adapter,
    together,
)
from tests.engine.test_shortage import Memory, out_of_memory
from tests.kernels.gpu.conftest import interpreted  # noqa: F401
from tests.kernels.gpu.oracle import DEVICE
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU stands in for a GPU: in the interpreter only")


def asking(most: int = 20, **what) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": most, "ignore_eos": True, **what})


KINDS = [
    asking(repetition_penalty=1.4),
    asking(repetition_penalty=0.7, frequency_penalty=0.4),
    asking(presence_penalty=-1.5, frequency_penalty=-0.3),  # the same again and again
    asking(frequency_penalty=2.0, presence_penalty=2.0, logit_bias={11: 100.0, 12: 99.0}),
    asking(logit_bias=dict.fromkeys(range(0, 460, 2), -100.0)),
    asking(temperature=1.0, seed=4, repetition_penalty=1.2, logprobs=5),
    asking(temperature=0.8, seed=5, top_p=0.9, top_k=50, frequency_penalty=0.9),
    asking(temperature=0.9, seed=6, min_p=0.1, presence_penalty=0.6, logit_bias={40: 3.0, 41: -3.0}),
    asking(logprobs=0),
    asking(temperature=0.9, seed=7),
]
ASKED = [(prompt(5 + 6 * (n % 4), n), params) for n, params in enumerate(KINDS)]


@pytest.fixture(scope="module")
def wanted(cpu):  # noqa: F811
    return [alone(cpu, *one) for one in ASKED]


class Truth:
    """Compares every slot that a step is about to use with its request; `looks` counts them, `fills` those made."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
        self.looks, self.fills, self.ahead, self.wrong = 0, 0, False, []
        runner = engine._runner
        self._slots, self._rows = runner._penalties, runner._graphs._rows
        shape, fill, launch_ahead = Penalties.shape, PenaltySlots._fill, runner.launch_ahead

        def looking(table, logits, slots):
            for row, slot in enumerate(slots.tolist()):
                if slot != NONE:
                    self._look(table, row, slot)
            return shape(table, logits, slots)

        def filling(slots, holder, request):
            self.fills += 1
            fill(slots, holder, request)

        def launching(plan):
            self.ahead = True
            try:
                return launch_ahead(plan)
            finally:
                self.ahead = False

        monkeypatch.setattr(Penalties, "shape", looking)
        monkeypatch.setattr(PenaltySlots, "_fill", filling)
        monkeypatch.setattr(runner, "launch_ahead", launching)

    def _look(self, table: Penalties, row: int, slot: int) -> None:
        self.looks += 1
        (request,) = [r for r, holder in self._slots._holders.items() if holder.slot == slot]
        seen = torch.zeros_like(table.seen[slot])
        seen[list(request.request.prompt)] = PROMPT
        generated = request.tokens[request.prompt_tokens :]
        if self.ahead:  # the last token is known to the GPU alone
            generated.append(int(self._rows.inputs[decode.TOKEN, row]))
        for token in generated:
            if token >= 0:
                seen[token] += 1
        biases = torch.zeros_like(table.biases[slot])
        for token, bias in request.params.logit_bias.items():
            biases[token] = bias
        p = request.params
        strengths = torch.tensor([p.repetition_penalty, p.presence_penalty, p.frequency_penalty])
        mine = (table.seen[slot], table.biases[slot], table.strengths[slot])
        if not all(map(torch.equal, mine, (seen, biases, strengths))):
            self.wrong.append((request.request.id, len(generated), self.ahead))


@pytest.fixture
def truth(engine, monkeypatch):  # noqa: F811
    truth = Truth(engine, monkeypatch)
    yield truth
    assert truth.looks and not truth.wrong


def test_requests_with_everything_are_served_with_steps_ahead(engine, wanted, truth):  # noqa: F811
    """There are more of them than seats and slots."""
    assert together(engine, ASKED) == wanted
    assert len(engine.ahead) > 10, "as soon as nobody waits"
    assert all(engine._runner.goes_ahead(plan) for (plan,) in engine.ahead)
    assert truth.fills == sum(params.shapes_logits for _, params in ASKED), "each slot is filled once"


@pytest.mark.parametrize("params", KINDS, ids=map(str, range(len(KINDS))))
def test_each_goes_ahead_alone(engine, cpu, params):  # noqa: F811
    ours, theirs = (Collector(each, prompt(9), params).wait() for each in (engine, cpu))
    assert [o.token_id for o in ours] == [o.token_id for o in theirs]
    assert len(engine.ahead) == params.max_tokens - 2, "the first step is the prompt's, the second follows it"


@pytest.mark.parametrize("best", [0, 3, 20])
def test_logprobs_are_the_cpu_s(engine, cpu, best):  # noqa: F811
    """Of the logits as the model gave them, beside penalties, in steps of all kinds."""
    params = asking(8, temperature=1.0, seed=1, logprobs=best, frequency_penalty=1.0)
    beside = (prompt(30, 7), asking(12))
    together_with = [(prompt(9), params), beside, (prompt(25, 3), asking(5, logprobs=20 - best))]
    gathered: list[list] = []
    for each in (engine, cpu):
        collectors: list[Collector] = []
        each.call(lambda each=each, to=collectors: to.extend(Collector(each, *one) for one in together_with))
        begun = threading.Event()
        each.call(begun.set)
        assert begun.wait(60)
        gathered.append([c.wait() for c in collectors])
    for ours, theirs in zip(*gathered, strict=True):
        assert [o.token_id for o in ours] == [o.token_id for o in theirs]
        for a, b in zip(ours, theirs, strict=True):
            if b.logprob is None:
                assert a.logprob is None
                continue
            assert a.logprob.token_id == b.logprob.token_id == a.token_id and a.logprob.text == b.logprob.text
            assert a.logprob.logprob == pytest.approx(b.logprob.logprob, abs=1e-4)
            assert [entry[:2] for entry in a.logprob.top] == [entry[:2] for entry in b.logprob.top]
            assert [e[2] for e in a.logprob.top] == pytest.approx([e[2] for e in b.logprob.top], abs=1e-4)
    assert engine.ahead and [len(o.logprob.top) for o in gathered[0][0]] == [best] * 8


def test_tokens_of_steps_with_prompts_are_counted_too(engine, cpu, truth):  # noqa: F811
    """One keeps its row while others come."""
    long = asking(60, repetition_penalty=1.3, frequency_penalty=0.5)
    first = Collector(engine, prompt(20), long)
    for n in range(3):
        assert first.begun.wait(60)
        alone(engine, prompt(12, n), asking(3, presence_penalty=1.0))
    assert [o.token_id for o in first.wait()] == alone(cpu, prompt(20), long)
    assert truth.fills == 4


def test_where_the_cpu_chooses_instead_the_gpu_is_told(engine, cpu, truth, monkeypatch):  # noqa: F811
    monkeypatch.setattr("coserve.kernels.gpu.sampling.CANDIDATES", 4)
    params = asking(25, seed=3, temperature=1.0, top_p=0.7, frequency_penalty=1.0, repetition_penalty=1.1, logprobs=1)
    others = [(prompt(7, n), kind) for n, kind in enumerate(KINDS[:3])]
    asked = [(prompt(9), params), *others]
    assert together(engine, asked) == [alone(cpu, *one) for one in asked]
    assert truth.fills > 4, "slots were filled anew"


def test_preempted_requests_come_back_with_all_that_they_have_said(checkpoint, monkeypatch, cpu):  # noqa: F811
    config = EngineConfig(kv_cache_tokens=80, max_num_seqs=4, max_batch_tokens=32, train_tokens=64)
    asked = [(prompt(20, n), params) for n, params in enumerate(KINDS[:6])]
    wanted = [alone(cpu, *one) for one in asked]
    with on_the_gpu(checkpoint, monkeypatch, config) as engine:  # noqa: F811
        truth = Truth(engine, monkeypatch)
        assert together(engine, asked) == wanted
        assert engine.stats().preemptions > 0 and truth.looks and not truth.wrong


def test_one_that_rests_for_a_higher_priority_goes_on(engine, cpu, truth):  # noqa: F811
    params = asking(60, frequency_penalty=0.7)
    low = Collector(engine, prompt(9), params)
    assert low.begun.wait(60)
    high = [asking(10, presence_penalty=0.5, logit_bias={9: 5.0}), asking(30)]
    requests = [Prior(engine, prompt(11, n), one) for n, one in enumerate(high)]
    for n, (one, request) in enumerate(zip(high, requests, strict=True)):
        assert [o.token_id for o in request.wait()] == alone(cpu, prompt(11, n), one)
    assert [o.token_id for o in low.wait()] == alone(cpu, prompt(9), params)
    assert truth.fills == 2


class Prior(Collector):
    """Of a higher priority."""

    def __init__(self, engine: Engine, ids, params):  # noqa: F811
        submit = engine.submit

        class Raised:
            def submit(self, request, take):
                submit(type(request)(request.prompt, request.params, request.model, priority=5), take)

        super().__init__(Raised(), ids, params)


def test_adapters_and_penalties_go_through_one_step(engine, cpu, truth, tmp_path):  # noqa: F811
    path = random_adapter(tmp_path / "one", cpu.model_config, 4)
    for each in (cpu, engine):
        each.load_adapter("one", path)
    asked = [(*one, model) for one, model in zip(ASKED[3:7], ("tiny", "one") * 2, strict=True)]
    assert together(engine, asked) == [alone(cpu, *one) for one in asked]
    assert len(engine.ahead) > 10


def test_sleep_in_the_middle_changes_nothing(tmp_path, monkeypatch):
    half = tiny_checkpoint(tmp_path / "half", dtype=torch.float16)  # no tensor stays a view of a file
    with loaded(half) as cpu:  # noqa: F811
        wanted = [alone(cpu, *one) for one in ASKED]
    monkeypatch.setattr(loading, "placement_on", lambda device: OnGpu(CPU))
    monkeypatch.setattr(sleep, "is_gpu", lambda device: True)
    monkeypatch.setattr(paged, "huge_empty", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    with on_the_gpu(half, monkeypatch) as engine:  # noqa: F811
        truth, forget = Truth(engine, monkeypatch), engine._runner.forget

        def forget_all() -> None:
            forget()
            engine.decoder.forget_addresses()  # a CPU's, which stands in for the GPU

        monkeypatch.setattr(engine._runner, "forget", forget_all)
        clients = [Collector(engine, *one) for one in ASKED]
        for client in clients[:8:3]:
            assert client.begun.wait(60)
            assert engine.sleep() > 0
            engine.wake()
        assert [[o.token_id for o in client.wait()] for client in clients] == wanted
        assert truth.looks and not truth.wrong


@pytest.mark.parametrize("number", [1, 5, 20])
def test_a_step_that_found_no_memory_has_counted_nothing(engine, wanted, truth, number):  # noqa: F811
    memory = Memory(engine)
    memory.enough = lambda rows: len(memory.rows) % (number + 7) != number
    assert together(engine, ASKED) == wanted
    assert len(memory.rows) > number


@pytest.mark.parametrize("number", [1, 3])
def test_a_capture_that_finds_no_memory_is_tried_again(engine, wanted, truth, monkeypatch, number):  # noqa: F811
    captures = []

    def capture(self, launches):
        captures.append(launches)
        return out_of_memory() if len(captures) == number else launches

    monkeypatch.setattr(Captured, "capture", capture)
    assert together(engine, ASKED) == wanted
    assert len(captures) >= number + 1 and engine.ahead


def test_without_memory_for_the_first_slots_the_step_is_tried_again(engine, wanted, truth, monkeypatch):  # noqa: F811
    """And what gives way takes the table with it, which is made once more."""
    empty, made = Penalties.empty, []

    def scarce(*args):
        made.append(args)
        return out_of_memory() if len(made) == 1 else empty(*args)

    monkeypatch.setattr(Penalties, "empty", scarce)
    assert together(engine, ASKED) == wanted
    assert len(made) == 2
    engine._runner.give_way()
    assert engine._runner._penalties.table is None
    assert together(engine, ASKED) == wanted and len(made) == 3


@pytest.mark.parametrize(("owner", "name"), [(choice, "sample"), (choice.Logprobs, "of")], ids=["sample", "told"])
def test_a_choice_that_finds_no_memory_has_counted_nothing(engine, wanted, truth, monkeypatch, owner, name):  # noqa: F811
    """Logits are shaped, tokens chosen even. A step that was ahead is left out; another one is computed once more."""
    whole, calls = getattr(owner, name), []

    def failing(*args, **options):
        calls.append(truth.ahead)
        ahead = sum(calls)
        return out_of_memory() if len(calls) == 11 or (truth.ahead and ahead in (2, 3, 5)) else whole(*args, **options)

    monkeypatch.setattr(owner, name, failing)
    assert together(engine, [*ASKED[:1], *ASKED[5:8]]) == [*wanted[:1], *wanted[5:8]]
    assert len(calls) > 11 and sum(calls) > 5


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_the_tokens_are_the_cpu_s(checkpoint, monkeypatch, cpu, tmp_path, seed):  # noqa: F811
    """Any mixture of requests, with hardly any cache, candidates that do not reach, steps that find no memory, sleep,
    priorities, and requests that are cancelled."""
    rng = random.Random(seed)
    monkeypatch.setattr("coserve.kernels.gpu.sampling.CANDIDATES", rng.choice((4, 16, 256)))
    config = EngineConfig(kv_cache_tokens=160, max_num_seqs=3, max_batch_tokens=24, train_tokens=64)
    asked = [(prompt(rng.randint(2, 40), rng.randint(0, 99)), any_params(rng)) for _ in range(10)]
    wanted = [alone(cpu, *one) for one in asked]
    with on_the_gpu(checkpoint, monkeypatch, config) as engine:  # noqa: F811
        engine.ahead = counted(engine, "launch_ahead")
        truth, memory = Truth(engine, monkeypatch), Memory(engine)
        fails = set(rng.sample(range(1, 200, 3), 6))  # a step that fails twice gives way for good
        memory.enough = lambda rows: len(memory.rows) not in fails
        clients = []
        for n, one in enumerate(asked):
            clients.append(rng.choice((Prior, Collector))(engine, *one))
            leaving = Collector(engine, prompt(8, n), any_params(rng), cancel_after=rng.randint(1, 9))
            if rng.random() < 0.4:
                clients[rng.randrange(len(clients))].begun.wait(rng.random())
            if rng.random() < 0.3:
                engine.sleep()
                engine.wake()
        assert [[o.token_id for o in client.wait()] for client in clients] == wanted
        leaving.wait()
        assert engine.ahead and truth.looks and not truth.wrong


def any_params(rng: random.Random) -> SamplingParams:
    def maybe(value):
        return value if rng.random() < 0.5 else None

    what = {
        "temperature": rng.choice((0, 0.7, 1.2)),
        "top_p": maybe(rng.uniform(0.5, 1)),
        "top_k": maybe(rng.randint(1, 30)),
        "min_p": maybe(rng.uniform(0, 0.1)),
        "repetition_penalty": maybe(rng.uniform(0.5, 2)),
        "presence_penalty": maybe(rng.uniform(-2, 2)),
        "frequency_penalty": maybe(rng.uniform(-2, 2)),
        "logit_bias": maybe({rng.randrange(460): rng.uniform(-100, 100) for _ in range(rng.randint(1, 40))}),
        "logprobs": maybe(rng.randint(0, 20)),
        "seed": rng.randint(0, 999),
    }
    return asking(rng.randint(10, 30), **{name: value for name, value in what.items() if value is not None})


# ---- slots ----------------------------------------------------------------------------------------------------------


def test_who_was_needed_last_keeps_its_slot_and_ended_ones_make_room():
    def request() -> ActiveRequest:
        return ActiveRequest(Request((1, 2), KINDS[0], "m"), None, None, 9, frozenset(), print, 0.0)

    one, two, three = request(), request(), request()
    slots = PenaltySlots(2, 64, CPU)
    slots.hold([one])
    slots.hold([two])
    slots.hold([one])
    kept = slots.slot(one)
    slots.hold([three])
    assert slots.slot(one) == kept and slots.slot(two) == NONE and 0 <= slots.slot(three) != kept
    slots.hold([two, one])
    assert {slots.slot(two), slots.slot(one)} == {0, 1} and slots.slot(one) == kept and slots.slot(three) == NONE


def test_a_request_that_asks_for_nothing_takes_no_slot_and_no_memory():
    plain = ActiveRequest(Request((1, 2), asking(), "m"), None, None, 9, frozenset(), print, 0.0)
    slots = PenaltySlots(1, 64, CPU)
    slots.hold([plain])
    slots.landed(plain)
    assert slots.table is None and slots.slot(plain) == NONE


def test_the_kernels_of_what_is_first_asked_for_run_before_a_graph_is_captured(engine, cpu, monkeypatch):  # noqa: F811
    """In all sizes, once, and not at the start: few servers need them."""
    graphs, events = engine._runner._graphs, []
    choose, capture = graphs._choose, Captured.capture
    monkeypatch.setattr(graphs, "_choose", lambda kind: (events.append(kind), choose(kind))[1])
    monkeypatch.setattr(
        Captured, "capture", lambda self, launches: (events.append("capture"), capture(self, launches))[1]
    )
    params = asking(4, presence_penalty=1.0, logprobs=1)
    assert alone(engine, prompt(5), params) == alone(cpu, prompt(5), params)
    before = events[: events.index("capture")]
    assert {(kind.rows, kind.asked) for kind in before} == {
        (rows, Asked(filtered, shaped=True, told=True)) for rows in graphs.sizes for filtered in (False, True)
    }
    events.clear()
    assert alone(engine, prompt(5), params) == alone(cpu, prompt(5), params)
    assert len(events) == 3 and "capture" not in events


def test_the_row_that_a_cpu_chooses_from_is_the_model_s_own(engine, cpu, monkeypatch):  # noqa: F811
    """Not shaped yet: else penalties would act twice."""
    monkeypatch.setattr("coserve.kernels.gpu.sampling.CANDIDATES", 2)
    rows = []
    monkeypatch.setattr(
        "coserve.engine.gpu.runner.sample_row",
        lambda logits, request: (rows.append(logits), sample_row(logits, request))[1],
    )
    params = asking(6, temperature=1.0, seed=2, top_p=0.99, logit_bias=dict.fromkeys(range(7, 17), 100.0))
    assert alone(engine, prompt(5), params) == alone(cpu, prompt(5), params)
    assert rows and max(float(row.max()) for row in rows) < 50


def test_a_request_that_has_ended_holds_nothing(engine, cpu, tmp_path):  # noqa: F811
    """Nor does its adapter stay, once that is unloaded and others have been asked for."""
    for name in ("first", "second"):
        engine.load_adapter(name, random_adapter(tmp_path / name, cpu.model_config, 4))
    layer = weakref.ref(engine._adapters["first"].layers[0])
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, frequency_penalty=0.5)
    alone(engine, prompt(5), params, "first")
    engine.unload_adapter("first")
    for seed in range(2):
        alone(engine, prompt(5, seed), params, "second")
    engine.ahead.clear()  # which the tests keep
    gc.collect()
    assert layer() is None and len(engine._runner._penalties._holders) <= 1
