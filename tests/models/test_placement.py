"""Loading to a GPU, with main memory standing in for its: the same weights to the bit, in new memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coserve.errors import InvalidRequest, ModelError
from coserve.kernels.device import CPU
from coserve.kernels.gpu import formats
from coserve.kernels.gpu.formats import QuantizedRows
from coserve.kernels.quantized import QuantizedWeight
from coserve.kernels.transfer import Transfer
from coserve.models import loading, quantization
from coserve.models.checkpoint import Checkpoint
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.matrices import all_matrices
from coserve.models.placement import OnGpu
from coserve.models.quantization import WeightFormats, floats
from coserve.models.stored import stored_weights
from tests.models.test_quantized_checkpoints import quantised_checkpoint
from tests.tiny import tiny_checkpoint

GPU = torch.device("cuda", 0)


@pytest.fixture
def placed(monkeypatch):
    """Loads as to a GPU, in pieces of a few rows."""

    def load(path, **options) -> Decoder:
        with monkeypatch.context() as patch:
            patch.setattr(loading, "placement_on", lambda device: OnGpu(CPU, Transfer(CPU, 1000)))
            return Decoder.from_directory(path, **options)

    return load


def matrices(decoder: Decoder) -> dict[str, Tensor | QuantizedWeight | QuantizedRows]:
    named = {f"layers.{x.index}.{n}": m.weight for x in decoder.layers for n, m in x.linears.items()}
    return {**named, "lm_head": decoder.lm_head}


def same(ours, theirs) -> bool:
    if isinstance(theirs, QuantizedWeight):
        theirs = QuantizedRows.of(theirs, "cpu")
    if isinstance(theirs, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    parts = theirs.tensors()
    return ours.tensors().keys() == parts.keys() and all(torch.equal(ours.tensors()[n], t) for n, t in parts.items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", ["auto", "bf16", "int8", "int4"])
def test_weights_are_those_of_the_cpu(tmp_path, placed, weights, dtype, tied):
    path = tiny_checkpoint(tmp_path, "qwen2", dtype=dtype, sharded=True, tie_word_embeddings=tied)
    usual, decoder = Decoder.from_directory(path, weights=weights), placed(path, weights=weights)
    ours, theirs = matrices(decoder), matrices(usual)
    assert all(same(ours[name], weight) for name, weight in theirs.items())
    assert decoder.weight_format == usual.weight_format and decoder.quantized == usual.quantized
    assert decoder.tensors().keys() == usual.tensors().keys()
    assert all(torch.equal(tensor, usual.tensors()[name]) for name, tensor in decoder.tensors().items())
    assert (decoder.embed is decoder.lm_head) == (usual.embed is usual.lm_head)
    assert decoder.cost.layer_weights == usual.cost.layer_weights


def test_a_matrix_of_several_modules_is_one_piece_of_memory(tmp_path, placed):
    path = tiny_checkpoint(tmp_path, "qwen2", dtype=torch.bfloat16)
    decoder = placed(path, weights="bf16", dtype=torch.bfloat16)
    for weight in matrices(decoder).values():
        assert weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes  # of no file, of no other


def test_a_quantised_checkpoint_is_unpacked_once_for_all_starts(tmp_path, placed, monkeypatch):
    path = tmp_path / "model"
    quantised_checkpoint(path, "gptq-asymmetric")
    usual = matrices(Decoder.from_directory(path))
    first = matrices(placed(path, cache=tmp_path / "cache"))
    monkeypatch.setattr(loading, "_each_quantized", lambda *_: pytest.fail("quantised again"))
    again = matrices(placed(path, cache=tmp_path / "cache"))
    assert all(same(first[name], weight) and same(again[name], weight) for name, weight in usual.items())


def test_what_a_cpu_has_kept_is_taken(tmp_path, placed, monkeypatch):
    path = tiny_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    usual = matrices(Decoder.from_directory(path, weights="int4", cache=tmp_path / "cache"))
    monkeypatch.setattr(quantization, "_quantized", lambda *_: pytest.fail("quantised again"))
    ours = matrices(placed(path, weights="int4", cache=tmp_path / "cache"))
    assert all(same(ours[name], weight) for name, weight in usual.items())


def test_a_gpu_keeps_nothing_on_disk_of_what_it_quantises(tmp_path, monkeypatch, placed):
    path = tiny_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    placed(path, weights="int8", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---- formats -------------------------------------------------------------------------------------------------------


def chosen(weights: str, dtype: torch.dtype | None, *, own: str, quantized: bool = False) -> tuple[torch.dtype, bool]:
    config = ModelConfig.from_dict({**LLAMA, "torch_dtype": own})
    made = WeightFormats.choose(config, weights, dtype, quantized, GPU)
    return made.dtype, made.quantized


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def test_a_gpu_computes_in_bfloat16_unless_asked():
    for own in ("float32", "float16", "bfloat16"):
        assert chosen("auto", None, own=own) == (torch.bfloat16, False)
        assert chosen("auto", torch.float32, own=own) == (torch.float32, False)
    for weights in ("int8", "int4", "fp8"):
        assert chosen(weights, None, own="bfloat16") == (torch.bfloat16, True)
        assert chosen(weights, torch.float32, own="bfloat16") == (torch.float32, True)
    assert chosen("auto", None, own="float16", quantized=True) == (torch.bfloat16, True)


def test_8_bit_floats_need_a_gpu(tmp_path):
    with pytest.raises(InvalidRequest, match="8-bit floats need a GPU; on a CPU int8"):
        Decoder.from_directory(tiny_checkpoint(tmp_path), weights="fp8")


def on_gpu_in_fp8(path) -> Checkpoint:
    config = ModelConfig.from_directory(path)
    return Checkpoint(config, stored_weights(path, config), WeightFormats("fp8", torch.bfloat16, True), OnGpu(CPU))


def test_8_bit_floats_have_a_scale_for_each_row_and_the_head_is_in_int8(tmp_path):
    path = tiny_checkpoint(tmp_path, "qwen3", dtype=torch.bfloat16)
    wanted = matrices(Decoder.from_directory(path, weights="bf16"))
    checkpoint = on_gpu_in_fp8(path)
    decoder = Decoder(checkpoint, max_positions=64)
    assert decoder.weight_format == "float8" and decoder.lm_head.name == "int8" and decoder.quantized
    for matrix in all_matrices(checkpoint.config)[:-1]:
        weight, exact = matrices(decoder)[matrix.name], wanted[matrix.name].float()
        assert weight.data.dtype == torch.float8_e4m3fn and weight.scales.shape == (1, exact.shape[0])
        largest = exact.abs().amax(1, keepdim=True)
        error = (formats.dequantize(weight) - exact).abs()
        assert (error <= exact.abs() / 16 + largest / 448 / 512).all()  # half of the last of 3 bits, or of the least


def test_8_bit_floats_of_a_row_of_zeros_are_zeros():
    weight = torch.zeros(16, 40)
    weight[3] = torch.linspace(-2, 2, 40)
    assert torch.equal(formats.dequantize(QuantizedRows.in_fp8(weight))[[0, 15]], torch.zeros(2, 40))
    assert floats(QuantizedRows.in_fp8(weight))[3, 0] == -2 and QuantizedRows.in_fp8(weight).shape == (16, 40)


def test_a_matrix_that_8_bit_floats_do_not_take_is_named(tmp_path):
    path = tiny_checkpoint(tmp_path, intermediate_size=72)
    with pytest.raises(ModelError, match=r"layers.0.down is \[64, 72\]; in 8-bit floats both must be multiples of 16"):
        Decoder(on_gpu_in_fp8(path), max_positions=64)


# ---- what else there is --------------------------------------------------------------------------------------------


def test_a_decoder_tells_its_device_and_all_that_it_holds(tmp_path, placed):
    path = tiny_checkpoint(tmp_path, "qwen3", dtype=torch.bfloat16)
    assert Decoder.from_directory(path).device == CPU
    decoder = placed(path, weights="int4")
    held = {id(tensor) for tensor in decoder.memory()}
    assert {id(tensor) for tensor in decoder.tensors().values()} <= held
    assert {id(tensor) for tensor in decoder.rope} <= held
    assert {id(t) for weight in matrices(decoder).values() for t in weight.tensors().values()} <= held


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InvalidRequest, match="device is 'cuda:99', which is not there"):
        Decoder.from_directory(tmp_path / "no such directory", device="cuda:99")
