"""GGUF files against the package `gguf`, which writes them, packs their blocks and says what these are worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from coserve.errors import ModelError
from coserve.kernels.quantized import QuantizedWeight, dequantize
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.stored import stored_weights
from tests.models.test_quantization import PROMPT, logits
from tests.tiny import SENTENCES, tiny_checkpoint

gguf = pytest.importorskip("gguf")
TYPES = gguf.GGMLQuantizationType
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}


def ggml_name(name: str) -> tuple[str, str]:
    """The name there, and the module's here."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{kind}", module
    _, _, index, rest = module.split(".", 3)
    return f"blk.{index}.{NAMES[rest]}.{kind}", rest


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute`."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def unpermuted(weights: np.ndarray, heads: int) -> np.ndarray:
    shape = weights.shape
    return weights.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def packed(weights: np.ndarray, kind) -> np.ndarray:
    if kind not in (TYPES.Q4_K, TYPES.Q6_K):
        return gguf.quantize(weights, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]  # the package only reads these: any bytes with small scales will do
    blocks = np.random.default_rng(weights.size).integers(0, 256, (weights.size // block, size), dtype=np.uint8)
    small = np.array([0.001], np.float16).view(np.uint8)
    for first in (0, 2) if kind == TYPES.Q4_K else (size - 2,):
        blocks[:, first : first + 2] = small
    return blocks.reshape(weights.shape[0], -1)


def convert(path, kinds, family: str = "llama", **overrides):
    """Write a checkpoint as `path/model.gguf`, its matrices by turns in these types; every weight's values by name."""
    architecture = "llama" if family in ("llama", "mistral") else family
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    tiny_checkpoint(path, family, initializer_range=0.1, **(sizes | overrides))
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    writer = gguf.GGUFWriter(path / "model.gguf", architecture)
    writer.add_block_count(2)
    writer.add_token_list(list(SENTENCES))
    writer.add_array("made.up", [[1, 2], [3, 4]])
    writer.add_bool("made.up.flag", True)
    values, matrices = {}, 0
    for name, weight in weights.items():
        array, (there, module) = weight.numpy(), ggml_name(name)
        heads = HEADS.get(module, 0) if architecture == "llama" else 0
        array = permuted(array, heads) if heads else array
        if array.ndim == 2:
            kind = kinds[matrices % len(kinds)]
            matrices += 1
            blocks = packed(array, kind)
            writer.add_tensor(there, blocks, raw_dtype=kind)
            array = gguf.dequantize(blocks, kind)
        else:
            writer.add_tensor(there, array)
        values[name] = torch.from_numpy(unpermuted(array, heads).copy() if heads else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def stored(path):
    weights = stored_weights(path, ModelConfig.from_directory(path))
    return weights, lambda name: weights.get(name.removeprefix("model."))


def floats(weight) -> torch.Tensor:
    return dequantize(weight) if isinstance(weight, QuantizedWeight) else weight.float()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_values_are_the_packages_own(tmp_path, family, kind):
    values = convert(tmp_path, [TYPES[kind]], family)
    weights, get = stored(tmp_path)
    for name, wanted in values.items():
        assert torch.equal(floats(get(name)), wanted), name
    matrix = get("model.layers.1.self_attn.k_proj.weight")
    assert weights.quantized == isinstance(matrix, QuantizedWeight) == kind.startswith("Q")
    if weights.quantized:
        assert (matrix.name, matrix.mins is not None) == (f"int{kind[1]}", kind == "Q4_1")


@pytest.mark.parametrize("kind", ["Q5_0", "Q4_K", "Q6_K"])
def test_other_types_go_through_int8(tmp_path, kind):
    values = convert(tmp_path, [TYPES[kind]])
    _, get = stored(tmp_path)
    for name, wanted in values.items():
        ours = get(name)
        if wanted.dim() == 2:
            assert ours.name == "int8"
            step = wanted.view(len(wanted), -1, 32).abs().amax(-1) / 127
            assert ((floats(ours) - wanted).view(*step.shape, 32).abs() <= 0.51 * step.unsqueeze(-1) + 1e-7).all(), name


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {"attention_bias": True}), ("llama", {"tie_word_embeddings": True}), ("qwen2", {})],
    ids=["llama-biases", "llama-tied", "qwen2"],
)
@pytest.mark.parametrize("kinds", [["Q8_0"], ["Q4_0", "Q8_0", "F16", "Q5_0"]], ids=["one", "mixed"])
def test_logits_equal_transformers_on_the_values(tmp_path, family, overrides, kinds):
    values = convert(tmp_path / "gguf", [TYPES[kind] for kind in kinds], family, **overrides)
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "initializer_range": 0.1}
    plain = tiny_checkpoint(tmp_path / "plain", family, **sizes, **overrides)
    oracle = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    oracle.load_state_dict(values, strict=not overrides.get("tie_word_embeddings"))
    oracle.tie_weights()
    with torch.no_grad():
        wanted = oracle(torch.tensor([PROMPT])).logits[0]
    tolerance = 0.01 if kinds == ["Q8_0"] else 0.05
    for _ in range(2):  # made, then mapped
        decoder = Decoder.from_directory(tmp_path / "gguf", cache=tmp_path / "cache")
        assert (logits(decoder) - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, keep):
    convert(tmp_path, [TYPES.Q8_0])
    file = tmp_path / "model.gguf"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ModelError, match=r"model\.gguf is .*cut off"):
        Decoder.from_directory(tmp_path)


def test_what_is_no_gguf_file_and_which_of_two_is_said(tmp_path):
    convert(tmp_path, [TYPES.Q8_0])
    file = tmp_path / "model.gguf"
    (tmp_path / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"several GGUF files \(model.gguf, other.gguf\)"):
        Decoder.from_directory(tmp_path)
    (tmp_path / "other.gguf").unlink()
    file.write_bytes(b"GGML" + file.read_bytes()[4:])
    with pytest.raises(ModelError, match=r"model\.gguf is no GGUF file"):
        Decoder.from_directory(tmp_path)
