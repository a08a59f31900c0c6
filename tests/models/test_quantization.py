"""`--weights`: which format each matrix takes, what it is worth, and how it is kept for the next start."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from coserve.engine.batch import Batch
from coserve.engine.segment import Segment
from coserve.errors import InvalidRequest
from coserve.kernels.quantized import QuantizedWeight, dequantize, quantize
from coserve.models import loading
from coserve.models.decoder import Decoder
from coserve.models.matrices import all_matrices
from coserve.models.weights import map_tensors
from tests.tiny import tiny_checkpoint

PROMPT = list(range(5, 45))


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoint(tmp_path / "model", "qwen2", dtype=torch.bfloat16)


def logits(decoder: Decoder) -> torch.Tensor:
    batch = Batch.of([Segment("prefill", PROMPT, 0, range(4))])
    with torch.inference_mode():
        return decoder.logits(decoder.forward(batch.token_ids, batch.layout, decoder.new_cache(4))).float()


def formats(decoder: Decoder) -> dict[str, str]:
    weights = {f"layers.{layer.index}.{n}": m.weight for layer in decoder.layers for n, m in layer.linears.items()}
    weights["lm_head"] = decoder.lm_head
    names = [m.name for m in all_matrices(decoder.config)]
    return {n: w.name if isinstance(w, QuantizedWeight) else str(w.dtype) for n in names for w in [weights[n]]}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("weights", "tolerance"), [("int8", 2e-3), ("int4", 0.1)])
def test_logits_are_those_of_the_quantised_values(tmp_path, weights, tolerance, tied):
    path = tiny_checkpoint(tmp_path, "qwen3", tie_word_embeddings=tied)
    decoder = Decoder.from_directory(path, weights=weights)
    oracle = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    oracle.load_state_dict(decoder.state_dict(), strict=False)
    if tied:  # the head has a matrix of its own, the look-up stays as it was
        oracle.lm_head.weight = torch.nn.Parameter(dequantize(decoder.lm_head))
        assert torch.equal(decoder.embed, load_file(path / "model.safetensors")["model.embed_tokens.weight"])
    with torch.no_grad():
        wanted = oracle(torch.tensor([PROMPT])).logits[0]
    assert (logits(decoder) - wanted).norm() < tolerance * wanted.norm()
    assert decoder.dtype == torch.float32 and decoder.weight_format == weights and decoder.quantized


def test_each_matrix_has_the_format_asked_for(checkpoint):
    of_int8, of_int4, of_bf16 = (
        formats(Decoder.from_directory(checkpoint, weights=weights)) for weights in ("int8", "int4", "bf16")
    )
    assert set(of_int8.values()) == {"int8"}
    assert {name for name, form in of_int4.items() if form == "int8"} == {"lm_head"}
    assert {form for name, form in of_int4.items() if name != "lm_head"} == {"int4"}
    assert set(of_bf16.values()) == {"torch.bfloat16"}


def test_bf16_rounds_a_float32_checkpoint(tmp_path):
    path = tiny_checkpoint(tmp_path)
    saved = Decoder.from_directory(path, weights="bf16").state_dict()
    wanted = load_file(path / "model.safetensors")
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[n].float(), w.bfloat16().float()) for n, w in wanted.items() if w.dim() == 2)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_cost_counts_every_byte_of_the_matrices(checkpoint, weights):
    decoder = Decoder.from_directory(checkpoint, weights=weights)
    linears = [linear.weight for layer in decoder.layers for linear in layer.linears.values()]
    held = sum(t.nbytes for w in (*linears, decoder.lm_head) for t in w.tensors().values())
    cost = decoder.cost
    assert cost.forward(1, 0, 0, 1).bytes == held
    assert cost.layer(1).bytes - cost.mlp_bytes == decoder.layers[0].qkv.weight.nbytes
    assert cost.head(1).bytes == decoder.lm_head.nbytes


def test_what_does_not_go_together_is_refused(checkpoint):
    with pytest.raises(InvalidRequest, match="weights is 'int3'; it must be one of auto, bf16, int8, int4"):
        Decoder.from_directory(checkpoint, weights="int3")
    with pytest.raises(InvalidRequest, match="float32, not in bfloat16"):
        Decoder.from_directory(checkpoint, weights="int8", dtype=torch.bfloat16)


def test_a_large_matrix_is_quantised_in_pieces_as_in_one(monkeypatch, checkpoint):
    whole = Decoder.from_directory(checkpoint, weights="int4").state_dict()
    monkeypatch.setattr("coserve.models.quantization._ELEMENTS_AT_ONCE", 1)
    pieces = Decoder.from_directory(checkpoint, weights="int4").state_dict()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


# ---- modules that lie in the file as they do in the matrix --------------------------------------------------------


def test_gate_and_up_of_a_checkpoint_are_mapped_not_copied(checkpoint):
    decoder = Decoder.from_directory(checkpoint, dtype=torch.float32)
    if decoder.weight_dtype != torch.bfloat16:
        pytest.skip("without the native kernels weights are widened")
    gate_up, qkv = decoder.layers[0].gate_up.weight, decoder.layers[0].qkv.weight
    saved = load_file(checkpoint / "model.safetensors")
    parts = [saved[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(gate_up, torch.cat(parts))
    assert gate_up.untyped_storage().data_ptr() == decoder.embed.untyped_storage().data_ptr()
    assert qkv.untyped_storage().data_ptr() != decoder.embed.untyped_storage().data_ptr()
    assert decoder.embed.untyped_storage().nbytes() == (checkpoint / "model.safetensors").stat().st_size


def test_mapped_tensors_are_the_files_own_and_changes_stay_out_of_it(checkpoint):
    file = checkpoint / "model.safetensors"
    mapped, wanted = map_tensors(file), load_file(file)
    assert mapped.keys() == wanted.keys()
    assert all(torch.equal(mapped[name], wanted[name]) for name in wanted)
    mapped["model.norm.weight"].zero_()
    assert torch.equal(load_file(file)["model.norm.weight"], wanted["model.norm.weight"])


# ---- kept on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(checkpoint, tmp_path):
    """A cache with the checkpoint in int4, and what it computes."""
    cache = tmp_path / "cache"
    first = logits(Decoder.from_directory(checkpoint, weights="int4", cache=cache))
    (file,) = cache.iterdir()
    return cache, file, first


@pytest.fixture
def quantised(monkeypatch):
    """The matrices that are quantised from here on."""
    names = []
    each = loading._each_quantized

    def watched(checkpoint):
        for name, weight in each(checkpoint):
            names.append(name)
            yield name, weight

    monkeypatch.setattr(loading, "_each_quantized", watched)
    return names


def test_the_second_start_maps_what_the_first_has_made(checkpoint, kept, quantised):
    cache, file, first = kept
    plain = logits(Decoder.from_directory(checkpoint, weights="int4"))
    assert len(quantised) == 9 and torch.equal(plain, first)  # without a cache, in memory
    quantised.clear()
    decoder = Decoder.from_directory(checkpoint, weights="int4", cache=cache)
    assert quantised == [] and torch.equal(logits(decoder), first)
    data = decoder.layers[1].gate_up.weight.data
    assert data.untyped_storage().nbytes() == file.stat().st_size  # a view of the file
    assert data.data_ptr() % 64 == 0


@pytest.mark.parametrize("place", ["cut off", "emptied", "a header", "an integer", "a scale", "the end"])
def test_a_damaged_file_is_made_again(checkpoint, kept, quantised, place):
    cache, file, first = kept
    content = bytearray(file.read_bytes())
    places = {"a header": 40, "an integer": len(content) // 3, "a scale": len(content) - 100, "the end": -1}
    if place in places:
        content[places[place]] ^= 1
    file.write_bytes({"cut off": content[:-64], "emptied": b""}.get(place, content))
    for made in (9, 0):
        again = Decoder.from_directory(checkpoint, weights="int4", cache=cache)
        assert len(quantised) == made and torch.equal(logits(again), first)
        quantised.clear()
    assert list(cache.iterdir()) == [file]


def test_another_checkpoint_in_its_place_is_noticed(checkpoint, kept, quantised):
    cache, file, first = kept
    tiny_checkpoint(checkpoint, "qwen2", dtype=torch.bfloat16, seed=1)
    changed = logits(Decoder.from_directory(checkpoint, weights="int4", cache=cache))
    assert len(quantised) == 9 and not torch.equal(changed, first)
    assert list(cache.iterdir()) == [file]


def test_without_room_to_keep_it_a_model_starts_all_the_same(checkpoint, tmp_path, kept, quantised):
    nowhere = tmp_path / "a file"
    nowhere.write_text("")
    decoder = Decoder.from_directory(checkpoint, weights="int4", cache=nowhere / "cache")
    assert torch.equal(logits(decoder), kept[2])


def test_a_start_that_is_cut_off_leaves_the_file_as_it_was(checkpoint, kept, monkeypatch):
    cache, file, _ = kept
    before = file.read_bytes()
    os.utime(checkpoint / "model.safetensors")  # made anew at the next start

    def fails(weight, bits):
        raise KeyboardInterrupt

    monkeypatch.setattr("coserve.models.quantization._quantized", fails)
    with pytest.raises(KeyboardInterrupt):
        Decoder.from_directory(checkpoint, weights="int4", cache=cache)
    assert list(cache.iterdir()) == [file] and file.read_bytes() == before


def test_quantised_matrices_are_quantises_own(checkpoint):
    decoder = Decoder.from_directory(checkpoint, weights="int8")
    stored = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(decoder.layers[1].down.weight.data, quantize(stored, 8).data)
