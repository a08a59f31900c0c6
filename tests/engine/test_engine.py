"""The engine's promises: the same tokens in any company, limits, cancellation, and a fair end for every request."""

from __future__ import annotations

import queue
import threading
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from coserve.engine import Engine, EngineConfig, Output, Request, SamplingParams
from coserve.engine.background_queue import BackgroundQueue
from coserve.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, OutOfMemory, Unavailable
from coserve.models.decoder import Decoder
from coserve.models.tokenizer import Tokenizer
from coserve.roofline import Chip, Roofline
from tests.engine.test_background_queue import Job
from tests.tiny import tiny_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8", "int4"])
def engine(request, checkpoint):
    option = "weights" if request.param.startswith("int") else "dtype"
    with Engine.from_pretrained(checkpoint, name="tiny", **{option: request.param}) as engine:
        yield engine


@pytest.fixture
def small(checkpoint):
    """An engine with hardly any KV cache."""
    config = EngineConfig(kv_cache_tokens=160, max_batch_tokens=32, max_num_seqs=4, train_tokens=64)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        yield engine


def prompt(n: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(3, 400, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def tokens(outputs) -> list[int]:
    return [o.token_id for o in outputs]


class Collector:
    """Gathers one request's outputs from the engine's thread."""

    def __init__(self, engine: Engine, ids, params=GREEDY, model="tiny", **who):
        self.request = Request(tuple(ids), params, model, **who)
        self.outputs: list[Output] = []
        self.done = threading.Event()
        engine.submit(self.request, self.take)

    def take(self, output: Output) -> None:
        self.outputs.append(output)
        if output.finish_reason:
            self.done.set()

    def wait(self) -> list[Output]:
        assert self.done.wait(60)
        return self.outputs


def test_greedy_tokens_equal_transformers_generate(checkpoint):
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = prompt(70)
    wanted = oracle.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=24, min_new_tokens=24, eos_token_id=None
    )[0, len(ids) :].tolist()
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny") as engine:
        assert tokens(engine.generate(ids, GREEDY)) == wanted


def test_greedy_tokens_are_the_same_alone_and_in_any_company(engine):
    prompts = [prompt(n, seed) for seed, n in enumerate((1, 5, 40, 97, 300, 3, 64, 17))]
    alone = [tokens(engine.generate(p, GREEDY)) for p in prompts]
    for _ in range(3):
        crowd = [Collector(engine, p) for p in prompts]
        assert [tokens(c.wait()) for c in crowd] == alone


def test_preempted_requests_give_the_same_tokens(small):
    prompts = [prompt(30, seed) for seed in range(4)]
    alone = [tokens(small.generate(p, GREEDY)) for p in prompts]
    crowd = [Collector(small, p) for p in prompts]
    assert [tokens(c.wait()) for c in crowd] == alone
    assert small.stats().preemptions > 0
    assert small.stats().kv_blocks_used == 0


@pytest.mark.parametrize(
    ("protect", "max_num_seqs", "kv_cache_tokens"), [(1.1, 2, 1024), (1.1, 4, 160), (1.0, 2, 160), ("goals", 3, 240)]
)
def test_parked_and_preempted_requests_of_any_priority_give_the_same_tokens(
    checkpoint, protect, max_num_seqs, kv_cache_tokens
):
    config = EngineConfig(
        protect=protect,
        max_num_seqs=max_num_seqs,
        kv_cache_tokens=kv_cache_tokens,
        max_batch_tokens=32,
        train_tokens=64,
    )
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        prompts = [prompt(20 + 9 * seed, seed) for seed in range(6)]
        alone = [tokens(engine.generate(p, GREEDY)) for p in prompts]
        crowd, parked = [], 0
        for number, ids in enumerate(prompts):  # each one comes while those before it run, and goes before them
            crowd.append(Collector(engine, ids, priority=number))
            while not crowd[-1].outputs:
                parked = max(parked, engine.stats().requests_parked)
                time.sleep(0.0005)
        assert [tokens(c.wait()) for c in crowd] == alone
        stats = engine.stats()
        assert parked or stats.preemptions
        assert stats.kv_blocks_used == stats.requests_parked == stats.requests_waiting == 0


def test_a_request_that_waits_too_long_ends_with_unavailable(checkpoint):
    config = EngineConfig(max_num_seqs=1, kv_cache_tokens=512)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        first = Collector(engine, prompt(5), SamplingParams(temperature=0, ignore_eos=True))
        second = Collector(engine, prompt(5), queue_seconds=0.001)
        (output,) = second.wait()
        assert output.finish_reason == "error" and isinstance(output.error, Unavailable)
        assert "0.001 seconds" in output.error.message
        assert engine.stats().requests_expired == 1
        engine.cancel(first.request.id)
        first.wait()


def broken(*_: object) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("where", ["a step", "expiring", "accepting", "a call"])
def test_whatever_fails_on_the_engines_thread_ends_the_requests_and_not_the_thread(checkpoint, monkeypatch, where):
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny") as engine:
        running = Collector(engine, prompt(5), SamplingParams(temperature=0, ignore_eos=True))
        while not running.outputs:
            time.sleep(0.001)
        with monkeypatch.context() as patch:
            if where == "a call":
                engine.call(broken)
            elif where == "accepting":
                patch.setattr(engine.scheduler.waiting, "add", broken)
                half = Collector(engine, prompt(5))
                assert half.wait()[-1].finish_reason == "error"
            elif where == "expiring":
                patch.setattr(engine._requests, "expire", broken)
            else:
                patch.setattr(engine, "step", broken)
            last = running.wait()[-1]
        assert last.finish_reason == "error" and last.error.message == "The engine failed on this request."
        assert len(Collector(engine, prompt(5)).wait()) == 24
        assert engine.stats().kv_blocks_used == engine.stats().requests_running == 0


@pytest.mark.parametrize("fails", [False, True])
def test_whoever_asks_an_engine_that_ends_gets_an_answer(checkpoint, fails):
    """Also behind something that fails."""
    engine = Engine.from_pretrained(checkpoint, dtype="float32", name="tiny")
    held, asleep = threading.Event(), threading.Thread(target=lambda: answers.append(engine.sleep()), daemon=True)
    answers: list[int] = []
    engine.call(lambda: held.wait(60))  # what follows is read when the engine ends
    if fails:
        engine.call(broken)
    late = Collector(engine, prompt(5))
    asleep.start()
    ending = threading.Thread(target=engine.shutdown, daemon=True)
    while engine._inbox._asked.qsize() < 2 + fails:
        time.sleep(0.001)
    ending.start()
    while not engine._inbox.closed:
        time.sleep(0.001)
    held.set()
    for thread in (ending, asleep):
        thread.join(60)
        assert not thread.is_alive()
    assert late.wait()[-1].finish_reason == "cancelled" and answers == [0]


def test_a_queue_full_of_lower_priorities_keeps_no_higher_one_out(checkpoint):
    config = EngineConfig(max_waiting=2, max_num_seqs=1, kv_cache_tokens=512)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        params = SamplingParams(temperature=0, ignore_eos=True)
        crowd = [Collector(engine, prompt(20), params)]
        while not crowd[0].outputs:
            time.sleep(0.001)

        def flood() -> None:
            for _ in range(4):
                crowd.append(Collector(engine, prompt(20), params))

        with pytest.raises(Unavailable, match="queue is full"):
            flood()
        assert len(Collector(engine, prompt(9), priority=1).wait()) == 24
        for one in crowd:
            engine.cancel(one.request.id)


def test_a_seed_gives_the_same_tokens_again_in_any_company(engine):
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=7, max_tokens=20, ignore_eos=True)
    first = tokens(engine.generate(prompt(12), params))
    company = [Collector(engine, prompt(30, s)) for s in range(5)]
    assert tokens(engine.generate(prompt(12), params)) == first
    for other in company:
        other.wait()


def test_usage_counts_and_finish_reason_at_max_tokens(engine):
    outputs = list(engine.generate(prompt(9), GREEDY))
    assert [o.completion_tokens for o in outputs] == list(range(1, 25))
    assert {o.prompt_tokens for o in outputs} == {9}
    assert [o.finish_reason for o in outputs] == [None] * 23 + ["length"]


def test_a_stop_token_ends_and_is_not_part_of_the_text(engine):
    free = list(engine.generate(prompt(9), GREEDY))
    stop = free[10].token_id
    first = tokens(free).index(stop)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=(stop,))
    outputs = list(engine.generate(prompt(9), params))
    assert outputs[-1].finish_reason == "stop" and len(outputs) == first + 1
    assert "".join(o.text for o in outputs) == engine.tokenizer.decode(tokens(outputs)[:-1])


def test_a_stop_string_ends_and_is_not_part_of_the_text(engine):
    text = "".join(o.text for o in engine.generate(prompt(9), GREEDY))
    stop = text[5:8]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=(stop,))
    outputs = list(engine.generate(prompt(9), params))
    assert outputs[-1].finish_reason == "stop"
    assert "".join(o.text for o in outputs) == text[: text.index(stop)]


def test_cancel_ends_a_request_and_frees_its_blocks(engine):
    started, ended = queue.Queue(), threading.Event()

    def take(output: Output) -> None:
        started.put(output)
        if output.finish_reason:
            ended.set()

    request = Request(prompt(20), SamplingParams(temperature=0, ignore_eos=True), "tiny")
    engine.submit(request, take)
    started.get(timeout=20)
    engine.cancel(request.id)
    assert ended.wait(20)
    while not started.empty():
        last = started.get()
    assert last.finish_reason == "cancelled"
    assert engine.stats().kv_blocks_used == 0


def test_leaving_the_loop_early_cancels(engine):
    before = engine.stats().requests_cancelled
    for _ in engine.generate(prompt(5), SamplingParams(ignore_eos=True)):
        break
    list(engine.generate(prompt(5), GREEDY))  # a later request: the cancellation has been seen by now
    assert engine.stats().requests_cancelled == before + 1


def test_what_can_never_fit_is_refused_at_once(small):
    for ids, params in [
        (prompt(161), GREEDY),
        (prompt(140), SamplingParams(max_tokens=30)),
        (prompt(160), SamplingParams()),
    ]:
        with pytest.raises(ContextLengthExceeded, match="context is 160 tokens"):
            list(small.generate(ids, params))


def test_bad_requests_are_refused_with_what_would_be_right(engine):
    with pytest.raises(ModelNotFound, match=r"nope.*tiny"):
        list(engine.generate(prompt(3), GREEDY, model="nope"))
    with pytest.raises(InvalidRequest, match="empty"):
        list(engine.generate([], GREEDY))
    with pytest.raises(InvalidRequest, match="token id"):
        list(engine.generate([10**6], GREEDY))


def test_a_full_queue_refuses(checkpoint):
    config = EngineConfig(max_waiting=2, max_num_seqs=1, kv_cache_tokens=256)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        crowd: list[Collector] = []

        def flood() -> None:
            for _ in range(8):
                crowd.append(Collector(engine, prompt(20), params))

        with pytest.raises(Unavailable, match="queue is full"):
            flood()
        for one in crowd:
            one.wait()


def test_a_callback_that_raises_does_not_stop_the_engine(engine):
    def broken(output: Output) -> None:
        raise RuntimeError("a caller's bug")

    engine.submit(Request(prompt(3), GREEDY, "tiny"), broken)
    assert len(list(engine.generate(prompt(9), GREEDY))) == 24


def test_shutdown_ends_what_is_running(checkpoint):
    engine = Engine.from_pretrained(checkpoint, dtype="float32", name="tiny")
    one = Collector(engine, prompt(5), SamplingParams(ignore_eos=True))
    engine.shutdown()
    assert one.wait()[-1].finish_reason in ("cancelled", "length")
    with pytest.raises(Unavailable):
        list(engine.generate(prompt(3), GREEDY))


def test_logprobs_are_the_log_softmax_of_transformers(checkpoint):
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = prompt(11)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny") as engine:
        outputs = list(engine.generate(ids, SamplingParams(temperature=0, max_tokens=4, logprobs=3)))
    with torch.no_grad():
        logits = oracle(torch.tensor([[*ids, *tokens(outputs)]])).logits[0, len(ids) - 1 : -1]
    for output, row in zip(outputs, logits.log_softmax(-1), strict=True):
        values, best = row.topk(3)
        assert abs(output.logprob.logprob - row[output.token_id]) < 1e-4
        assert [t for t, _, _ in output.logprob.top] == best.tolist()
        assert torch.allclose(torch.tensor([v for _, _, v in output.logprob.top]), values, atol=1e-4)


def test_predictions_are_compared_with_what_steps_took(engine):
    list(engine.generate(prompt(9), GREEDY))
    stats = engine.stats()
    assert stats.predicted_step_seconds > 0 and stats.measured_step_seconds > 0
    assert 0 < stats.step_error_median < 5
    assert stats.mbu > 0


def test_what_suits_the_device_where_nothing_was_said():
    cpu, gpu = EngineConfig().on("cpu"), EngineConfig().on("cuda")
    assert (cpu.max_batch_tokens, cpu.itl_goal) == (256, 0.1)
    assert (gpu.max_batch_tokens, gpu.itl_goal) == (8192, 0.05)
    said = EngineConfig(max_batch_tokens=512, itl_goal=0.2)
    assert said.on("cpu") == said.on("cuda") == said
    with pytest.raises(InvalidRequest, match="itl_goal is -1"):
        EngineConfig(itl_goal=-1)


def slow_engine(checkpoint, config: EngineConfig) -> Engine:
    """An engine that believes to be on a slow chip, and is stepped by nobody."""
    engine = Engine(
        Decoder.from_directory(checkpoint, dtype=torch.float32),
        Tokenizer.from_directory(checkpoint),
        "tiny",
        roofline=Roofline(Chip("slow", "float32", bandwidth=1e9, flops=1e8)),
        config=config,
    )
    engine.estimator.corrections.clear()  # what this machine is like does not matter here
    return engine


def test_prompts_are_cut_to_the_itl_goal_while_others_wait_for_their_next_token(checkpoint):
    engine = slow_engine(checkpoint, EngineConfig(itl_goal=0.1, kv_cache_tokens=4096))
    assert engine._steps.size.max_tokens(0.0) == engine.config.max_batch_tokens, "nobody waits"
    request = engine._activate(Request(prompt(9), GREEDY, "tiny"), lambda output: None)
    request.computed = 9
    request.tokens.append(5)
    request.last_token = 0.0
    engine.scheduler.running.append(request)
    limit = engine._steps.size.max_tokens(0.0)

    def seconds(rows: int) -> float:
        return engine._predictor.decoding_seconds(1, 10, rows)

    assert 17 < limit < engine.config.max_batch_tokens
    assert seconds(limit) <= 0.1 < seconds(limit + 1)
    assert seconds(engine._steps.size.max_tokens(0.04)) <= 0.06, "it waits since then"


def test_steps_stay_short_while_a_higher_priority_is_expected(checkpoint):
    engine = slow_engine(checkpoint, EngineConfig(itl_goal=0.1, kv_cache_tokens=4096))
    engine.scheduler.add(engine._activate(Request(prompt(200), GREEDY, "tiny"), lambda output: None))
    engine.scheduler.plan(1, 0.0)
    most = engine.config.max_batch_tokens
    assert engine._steps.size.max_tokens(100.0) == most
    engine._steps.size._last_seen[5] = 95.0
    assert engine._predictor.decoding_seconds(0, 0, engine._steps.size.max_tokens(100.0)) <= 0.1
    assert engine._steps.size.max_tokens(106.0) == most, "none came for ten seconds"


def test_under_goals_too_slices_end_when_a_request_comes(checkpoint, monkeypatch):
    engine = slow_engine(checkpoint, EngineConfig(protect="goals", kv_cache_tokens=4096))
    job = Job(9)
    engine._background.add(job)
    monkeypatch.setattr(engine._co_serving, "_allowance", lambda plan, whole: 1e9)
    monkeypatch.setattr(engine._co_serving, "_somebody_came", lambda: job.done == 2)
    engine._co_serving.use_slack(engine._steps.plan(0.0), 0.1, behind=0.0, ahead=False)
    assert job.done == 2


def test_slices_wait_for_the_step_that_is_on_its_way_and_come_before_the_next(checkpoint, monkeypatch):
    engine = slow_engine(checkpoint, EngineConfig(kv_cache_tokens=4096))
    job = Job(9)
    engine._background.add(job)
    monkeypatch.setattr(engine._co_serving, "_slack_behind", lambda plan, whole: 1e9)
    monkeypatch.setattr(BackgroundQueue, "full", property(lambda queue: job.done == 2))
    plan = engine._steps.plan(0.0)
    co_serving = engine._co_serving
    assert co_serving.use_slack(plan, 0.1, behind=0.0, ahead=True) == 0.0 and job.done == 0
    assert co_serving.launch_behind(plan) == 0.0 and job.done == 0, "a CPU's step has landed: tokens come first"
    monkeypatch.setattr(engine._runner, "goes_ahead", lambda plan: True)
    behind = co_serving.launch_behind(plan)
    assert behind > 0 and job.done == 2, "more would have to wait for the step"
    monkeypatch.setattr(BackgroundQueue, "full", property(lambda queue: False))
    assert co_serving.use_slack(plan, 0.1, behind=behind, ahead=False) >= behind and job.done == 9


def test_a_prompt_without_memory_fails_also_where_more_decode_than_are_in_its_step(checkpoint):
    """Steps get no smaller than all who decode and some of a prompt: trying goes on no longer than that."""
    engine = slow_engine(checkpoint, EngineConfig(protect=1.0, kv_cache_tokens=4096))
    launch, ended = engine._runner.launch, []

    def limited(plan, ride):
        if any(request.priority for request, _ in plan.chosen):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return launch(plan, ride)

    engine._runner.launch = limited

    def take(tokens: int, priority: int) -> None:
        request = Request(prompt(tokens), GREEDY, "tiny", priority=priority)
        one = engine._activate(request, lambda output: ended.append((priority, output.error)))
        engine._requests.accept(one)

    for _ in range(20):
        take(3, 0)
    engine.step()
    assert sum(r.decoding for r in engine.scheduler.running) == 20
    ended.clear()
    take(30, 1)
    for _ in range(20):
        engine.step()
    failed = [error for priority, error in ended if priority]
    assert len(failed) == 1 and isinstance(failed[0], OutOfMemory)


def test_training_waits_for_the_deadlines_of_the_highest_priority_only(checkpoint):
    engine = slow_engine(checkpoint, EngineConfig(protect="goals", kv_cache_tokens=4096))
    now = time.perf_counter()
    for who in ({"priority": 1, "itl_goal": 5.0}, {"itl_goal": 0.1}):
        request = engine._activate(Request(prompt(9), GREEDY, "tiny", **who), lambda output: None)
        engine.scheduler.add(request)
        request.last_token = now
    plan = engine._steps.plan(now)
    assert 4.0 < engine._co_serving._allowance(plan, 0.5) <= 4.5
