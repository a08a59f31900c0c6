"""Sleep on a GPU: its memory is really free, and what was there comes back."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from coserve.engine import Engine, EngineConfig, Request, SamplingParams
from coserve.engine.offload import cache_tensors, offload
from coserve.models.decoder import Decoder
from tests.tiny import tiny_checkpoint

GPU = torch.device("cuda", 0)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


def free() -> int:
    return torch.cuda.mem_get_info(GPU)[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Some 250 MB in bfloat16."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "head_dim": 64}
    path = tmp_path_factory.mktemp("tiny")
    return tiny_checkpoint(path, "qwen3", dtype=torch.bfloat16, num_attention_heads=16, initializer_range=0.02, **sizes)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "fp8"])
def test_weights_and_cache_leave_and_come_back(checkpoint, weights, capsys):
    """To the bit, at addresses that may be others."""
    decoder = Decoder.from_directory(checkpoint, device="cuda", weights=weights)
    cache = decoder.new_cache(20_000)
    for tensor in cache_tensors(cache):
        tensor.normal_()
    used = [0, 17, 19_999, 400]
    held = [tensor.cpu() for tensor in decoder.memory()]  # a copy here would keep pieces of the memory that is to go
    kept = [tensor[used].cpu() for tensor in cache_tensors(cache)]
    torch.cuda.synchronize(GPU)
    torch.cuda.empty_cache()
    before, started = free(), time.perf_counter()
    offloaded = offload(decoder.memory(), cache, used, GPU)
    asleep, slept = free(), time.perf_counter()
    taken = torch.ones(asleep // 2, dtype=torch.uint8, device=GPU)  # another program has the memory meanwhile
    del taken
    torch.cuda.empty_cache()
    woken = time.perf_counter()
    offloaded.restore()
    done = time.perf_counter()
    with capsys.disabled():
        freed = f"{(asleep - before) / 1e9:.2f} of {offloaded.device_bytes / 1e9:.2f} GB given back"
        print(f"\n{weights}: {freed}; slept in {slept - started:.2f} s, woke in {done - woken:.2f} s")
    assert asleep - before > 0.95 * offloaded.device_bytes
    assert all(torch.equal(h.to(GPU), t) for h, t in zip(held, decoder.memory(), strict=True))
    assert all(torch.equal(k.to(GPU), t[used]) for k, t in zip(kept, cache_tensors(cache), strict=True))


def test_an_engine_goes_on_with_the_same_tokens(checkpoint, capsys):
    # One at a time: beside the others' prompts the last bits would be others, and with them now and then a token.
    config = EngineConfig(kv_cache_tokens=200_000, max_num_seqs=1)
    with Engine.from_pretrained(checkpoint, device="cuda", name="tiny", config=config) as engine:
        prompts = [tuple(range(3 + n, 10 + n)) for n in range(4)]
        wanted = [[o.token_id for o in engine.generate(prompt, LONG)] for prompt in prompts]
        found: dict[str, list[int]] = {}
        over, begun = threading.Semaphore(0), threading.Event()

        def take(output) -> None:
            found[output.request_id].append(output.token_id)
            if max(map(len, found.values())) > 20:
                begun.set()
            if output.finish_reason:
                over.release()

        requests = [Request(prompt, LONG, "tiny") for prompt in prompts]
        found.update({request.id: [] for request in requests})
        for request in requests:
            engine.submit(request, take)
        assert begun.wait(60)
        before, started = free(), time.perf_counter()
        given_back = engine.sleep()
        asleep, slept = free(), time.perf_counter()
        said = sum(map(len, found.values()))
        time.sleep(0.2)
        assert said == sum(map(len, found.values()))
        woken = time.perf_counter()
        engine.wake()
        done = time.perf_counter()
        for _ in requests:
            assert over.acquire(timeout=60)
        with capsys.disabled():
            freed = f"{(asleep - before) / 1e9:.2f} of {given_back / 1e9:.2f} GB given back"
            print(f"\nengine: {freed}; slept in {slept - started:.2f} s, woke in {done - woken:.2f} s")
        assert [found[request.id] for request in requests] == wanted
        assert asleep - before > 0.9 * given_back > 0
