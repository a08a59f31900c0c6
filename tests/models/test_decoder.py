"""Logits against transformers, for every family, RoPE scaling and way of cutting a prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from coserve.engine.batch import Batch
from coserve.engine.blocks import blocks_for
from coserve.engine.segment import Segment
from coserve.kernels.native import library
from coserve.models.decoder import Decoder
from tests.tiny import tiny_checkpoint

ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_scaling": ROPES["llama3"]}),
    ("llama", {"rope_scaling": ROPES["linear"]}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 24}),
    ("qwen2", {"rope_scaling": ROPES["yarn"]}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    ("qwen3", {}),
    ("qwen3", {"rope_scaling": ROPES["yarn"]}),
    ("llama", {"dtype": torch.bfloat16}),  # the checkpoint's; all compute in float32
    ("qwen2", {"dtype": torch.bfloat16, "tie_word_embeddings": True}),
]
LENGTHS = (61, 1, 33)


@pytest.fixture(scope="module", params=CASES, ids=lambda c: "-".join([c[0], *c[1]]))
def both(request, tmp_path_factory):
    family, overrides = request.param
    path = tiny_checkpoint(tmp_path_factory.mktemp("model"), family, **overrides)
    oracle = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return oracle, Decoder.from_directory(path, dtype=torch.float32)


def prompts(vocab: int) -> list[list[int]]:
    torch.manual_seed(3)
    return [torch.randint(0, vocab, (n,)).tolist() for n in LENGTHS]


def oracle_logits(oracle, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return oracle(torch.tensor([prompt])).logits[0]


def all_logits(decoder: Decoder, segments: list[Segment], cache) -> torch.Tensor:
    batch = Batch.of(segments)
    with torch.inference_mode():
        return decoder.logits(decoder.forward(batch.token_ids, batch.layout, cache)).clone()


def tables(lengths) -> list[list[int]]:
    out, first = [], 0
    for n in lengths:
        out.append(list(range(first, first + blocks_for(n))))
        first += blocks_for(n)
    return out


def test_logits_of_a_batch_of_different_lengths_equal_transformers(both):
    oracle, decoder = both
    batch = prompts(decoder.config.vocab_size)
    segments = [Segment("prefill", p, 0, blocks) for p, blocks in zip(batch, tables(LENGTHS), strict=True)]
    logits = all_logits(decoder, segments, decoder.new_cache(20)).split(LENGTHS)
    for prompt, ours in zip(batch, logits, strict=True):
        assert (ours - oracle_logits(oracle, prompt)).abs().max() < 1e-4


def test_logits_of_a_prompt_fed_in_chunks_equal_transformers(both):
    oracle, decoder = both
    prompt = prompts(decoder.config.vocab_size)[0]
    cache, blocks, parts, start = decoder.new_cache(8), list(range(7, -1, -1)), [], 0
    for length in (1, 16, 3, 30, 11):
        segment = Segment("prefill", prompt[start : start + length], start, blocks)
        parts.append(all_logits(decoder, [segment], cache))
        start += length
    assert (torch.cat(parts) - oracle_logits(oracle, prompt)).abs().max() < 1e-4


def test_saved_weights_are_the_checkpoints_own(both):
    oracle, decoder = both
    wanted = {
        k: v for k, v in oracle.state_dict().items() if k != "lm_head.weight" or not decoder.config.tie_word_embeddings
    }
    saved = decoder.state_dict()
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name].float(), wanted[name]) for name in wanted)


@pytest.mark.skipif(library() is None, reason="the native kernels are off: 16-bit weights take the arithmetic's format")
@pytest.mark.parametrize(("native", "runs_in"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_checkpoints_run_in_what_the_machine_computes_natively(tmp_path, monkeypatch, native, runs_in):
    path = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setattr("coserve.models.dtype.multiplies_bfloat16", lambda: native)
    decoder = Decoder.from_directory(path)
    assert decoder.dtype == decoder.norm.dtype == runs_in
    assert decoder.weight_dtype == torch.bfloat16  # widened in the product, not in memory
    assert decoder.cost.layer_bytes == 2 * decoder.cost.layer_weights
    assert (decoder.cost.head_bytes, decoder.cost.kv_bytes) == (2 * decoder.cost.head_weights, runs_in.itemsize)


def test_without_kernels_weights_take_the_format_of_the_arithmetic(tmp_path, monkeypatch):
    path = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setattr("coserve.models.dtype.kernel", lambda name, dtype: None)
    assert Decoder.from_directory(path, dtype=torch.float32).weight_dtype == torch.float32
    assert Decoder.from_directory(path).dtype == torch.bfloat16  # widening would double the memory


ONE_CALL = [
    ("llama", "auto", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", "bf16", {"sliding_window": 24}),
    ("qwen2", "int8", {}),
    ("llama", "int8", {"mlp_bias": True, "intermediate_size": 72}),  # no whole number of panels is gated
    ("qwen3", "int4", {}),
]


@pytest.mark.skipif(library() is None, reason="the native kernels are off")
@pytest.mark.parametrize(("family", "weights", "overrides"), ONE_CALL)
def test_layers_in_one_call_compute_what_their_operations_do_to_the_bit(tmp_path, family, weights, overrides):
    decoder = Decoder.from_directory(tiny_checkpoint(tmp_path, family, **overrides), weights=weights)
    assert decoder._native is not None
    batch = prompts(decoder.config.vocab_size)
    segments = [Segment("prefill", p, 0, blocks) for p, blocks in zip(batch, tables(LENGTHS), strict=True)]
    caches = [decoder.new_cache(20) for _ in range(2)]
    for storage in (*caches[0].keys, *caches[0].values, *caches[1].keys, *caches[1].values):
        storage.zero_()
    at_once = all_logits(decoder, segments, caches[0])
    decoder.__dict__["_native"] = None  # what a cached property found
    assert torch.equal(at_once, all_logits(decoder, segments, caches[1]))
    assert all(map(torch.equal, caches[0].keys, caches[1].keys))
    assert all(map(torch.equal, caches[0].values, caches[1].values))


def test_layers_without_a_kernel_for_their_matrices_go_operation_by_operation(tmp_path, monkeypatch):
    monkeypatch.setattr("coserve.kernels.layers.multiplies_bfloat16", lambda: False)
    decoder = Decoder.from_directory(tiny_checkpoint(tmp_path), dtype=torch.bfloat16)
    assert decoder._native is None
