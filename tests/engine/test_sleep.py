"""Sleep: memory is given back, and whoever was at work goes on as if nothing had been.

The CPU stands in for a GPU: its tensors lie in memory that is given back and taken anew, at other addresses.
"""

from __future__ import annotations

import threading
import time

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Output, Request, SamplingParams, sleep
from coserve.engine.offload import Blocks, Whole, cache_tensors, offload
from coserve.errors import Unavailable
from coserve.kernels import KVCache, paged
from coserve.kernels.device import CPU
from coserve.models import loading
from coserve.models.placement import OnGpu
from tests.tiny import random_adapter, tiny_checkpoint

PROMPTS = [tuple(range(3 + n, 20 + 5 * n)) for n in range(6)]
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """In another format than is computed in: no tensor stays a view of a file."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3", dtype=torch.float16)


@pytest.fixture
def as_on_gpu(monkeypatch):
    monkeypatch.setattr(loading, "placement_on", lambda device: OnGpu(CPU))
    monkeypatch.setattr(sleep, "is_gpu", lambda device: True)
    monkeypatch.setattr(paged, "huge_empty", lambda shape, dtype: torch.empty(shape, dtype=dtype))


@pytest.fixture
def engine(checkpoint, as_on_gpu):
    config = EngineConfig(kv_cache_tokens=4096, train_tokens=64)
    with Engine.from_pretrained(checkpoint, device="cpu", dtype="float32", name="tiny", config=config) as engine:
        yield engine


class Client:
    """A request, and what came of it so far."""

    def __init__(self, engine: Engine, prompt, params=LONG, **who):
        self.outputs: list[Output] = []
        self.some, self.done = threading.Event(), threading.Event()
        self.request = Request(prompt, params, "tiny", **who)
        engine.submit(self.request, self._take)

    def _take(self, output: Output) -> None:
        self.outputs.append(output)
        if len(self.outputs) > 20:
            self.some.set()
        if output.finish_reason:
            self.some.set()
            self.done.set()

    def wait(self) -> list[int | None]:
        assert self.done.wait(60)
        return [output.token_id for output in self.outputs]


def alone(engine: Engine) -> list[list[int | None]]:
    return [[o.token_id for o in engine.generate(prompt, LONG)] for prompt in PROMPTS]


def memory(engine: Engine) -> int:
    tensors = [*engine.decoder.memory(), *cache_tensors(engine.cache)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def test_requests_in_flight_go_on_with_the_same_tokens(engine):
    wanted = alone(engine)
    clients = [Client(engine, prompt) for prompt in PROMPTS]
    for client in clients:
        assert client.some.wait(60)
    for _ in range(3):
        before = memory(engine)
        assert engine.sleep() == before > 0
        assert memory(engine) == 0 and engine.asleep and engine.stats().asleep
        said = [len(client.outputs) for client in clients]
        time.sleep(0.05)
        assert said == [len(client.outputs) for client in clients]
        engine.wake()
        assert memory(engine) == before and not engine.asleep
        time.sleep(0.02)
    assert [client.wait() for client in clients] == wanted


def test_requests_that_come_meanwhile_wait(engine):
    (wanted, *_) = alone(engine)
    engine.sleep()
    client = Client(engine, PROMPTS[0])
    impatient = Client(engine, PROMPTS[1], queue_seconds=0.05)
    leaving = Client(engine, PROMPTS[2])
    engine.cancel(leaving.request.id)
    assert leaving.wait() and leaving.outputs[-1].finish_reason == "cancelled"
    assert impatient.wait() and isinstance(impatient.outputs[-1].error, Unavailable)
    assert not client.outputs and engine.stats().requests_waiting == 1
    engine.wake()
    assert client.wait() == wanted


def test_an_adapter_takes_no_memory_before_the_engine_wakes(engine, tmp_path):
    path = random_adapter(tmp_path / "one", engine.model_config)
    engine.sleep()
    loading = threading.Thread(target=engine.load_adapter, args=("one", path))
    loading.start()
    loading.join(0.2)
    assert loading.is_alive() and engine.models() == ["tiny"]
    engine.wake()
    loading.join(60)
    assert engine.models() == ["tiny", "one"]


def test_who_waits_to_load_an_adapter_hears_of_the_end(engine, tmp_path):
    path, heard = random_adapter(tmp_path / "one", engine.model_config), []

    def load() -> None:
        with pytest.raises(Unavailable, match="shutting down"):
            engine.load_adapter("one", path)
        heard.append(True)

    engine.sleep()
    loading = threading.Thread(target=load)
    loading.start()
    engine.shutdown()
    loading.join(60)
    assert heard


def test_who_sleeps_or_is_awake_already_stays_so(engine):
    engine.wake()
    assert engine.sleep() > 0
    assert engine.sleep() == 0
    engine.wake()
    engine.wake()
    assert not engine.asleep and alone(engine)


def test_many_may_ask_at_once(engine):
    wanted = alone(engine)
    clients = [Client(engine, prompt) for prompt in PROMPTS]
    threads = [threading.Thread(target=ask) for _ in range(8) for ask in (engine.sleep, engine.wake)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    engine.wake()
    assert [client.wait() for client in clients] == wanted


def test_a_server_that_stops_needs_no_waking(engine):
    client = Client(engine, PROMPTS[0])
    engine.sleep()
    engine.shutdown()
    assert client.wait() and client.outputs[-1].finish_reason == "cancelled"
    with pytest.raises(Unavailable, match="shutting down"):
        engine.wake()


def test_without_room_in_main_memory_nobody_sleeps(engine, monkeypatch):
    wanted = alone(engine)
    monkeypatch.setattr("coserve.engine.offload.available_memory", lambda: 1000)
    with pytest.raises(Unavailable, match=r"sleeping takes 0.0 GB of main memory; 0.0 GB are free"):
        engine.sleep()
    assert not engine.asleep and alone(engine) == wanted


def test_without_room_to_gather_blocks_nobody_sleeps(engine, monkeypatch):
    def full(self, transfer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "keep", full)
        with pytest.raises(Unavailable, match="takes some of the GPU's memory for a moment"):
            engine.sleep()
    assert not engine.asleep and list(engine.generate(PROMPTS[0], LONG))


def test_memory_that_another_program_holds_is_not_taken(engine, monkeypatch):
    """Waking fails half way, and is tried again."""
    wanted = alone(engine)
    client = Client(engine, PROMPTS[0])
    assert client.some.wait(60)
    engine.sleep()
    restore, calls = Whole.restore, []

    def full(self, transfer):
        calls.append(self)
        if len(calls) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        restore(self, transfer)

    with monkeypatch.context() as patch:
        patch.setattr(Whole, "restore", full)
        with pytest.raises(Unavailable, match="Stop the other program first"):
            engine.wake()
    assert engine.asleep and memory(engine) == 0
    engine.wake()
    assert client.wait() == wanted[0]


def test_on_a_cpu_an_engine_rests_where_it_is(checkpoint):
    config = EngineConfig(kv_cache_tokens=4096, train_tokens=64)
    with Engine.from_pretrained(checkpoint, device="cpu", dtype="float32", name="tiny", config=config) as engine:
        wanted, before = alone(engine), memory(engine)
        client = Client(engine, PROMPTS[0])
        assert engine.sleep() == 0 and engine.asleep and memory(engine) == before
        engine.wake()
        assert client.wait() == wanted[0]


# ---- what is moved -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_major", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_of_the_cache_only_used_blocks_are_kept(as_on_gpu, dtype, token_major):
    cache = KVCache(2, 12, 3, 32, dtype, token_major=token_major)
    for tensor in cache_tensors(cache):
        tensor.copy_(torch.randn(tensor.shape))
    before, used = [t.float().clone() for t in cache_tensors(cache)], [7, 2, 11]
    offloaded = offload([], cache, used, CPU)
    assert all(t.untyped_storage().nbytes() == 0 for t in cache_tensors(cache))
    assert sum(held.kept_bytes for held in offloaded.held) * 4 == offloaded.device_bytes
    offloaded.restore()
    for ours, theirs in zip(cache_tensors(cache), before, strict=True):
        assert torch.equal(ours[used].float(), theirs[used])


def test_views_and_what_is_saved_for_a_gradient_need_not_be_told():
    weight = torch.randn(8, 4, requires_grad=True)
    x = torch.randn(3, 4, requires_grad=True)
    half, wanted, address = weight[2:5], weight.detach().clone(), weight.data_ptr()
    y = (x @ weight.t()).sum()
    offloaded = offload([weight, half, weight.detach()], KVCache(0, 1, 1, 16, torch.float32), [], CPU)
    assert len(offloaded.held) == 1 and offloaded.device_bytes == weight.nbytes
    in_the_way = torch.ones(8, 4)  # has the address, likely
    offloaded.restore()
    y.backward()
    assert torch.equal(weight, wanted) and torch.equal(half, wanted[2:5])
    assert torch.equal(x.grad, wanted.sum(0).expand(3, 4))
    assert in_the_way.data_ptr() != address or weight.data_ptr() != address
