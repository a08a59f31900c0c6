"""Checkpoints that others have quantised are worth, here, what their formats say."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from coserve.errors import InvalidRequest, ModelError
from coserve.kernels.quantized import dequantize
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.matrices import BLOCK_OF
from coserve.models.stored import stored_weights
from tests.models import quantized_checkpoints as formats
from tests.models.test_quantization import PROMPT, logits
from tests.tiny import tiny_checkpoint, write_json

CASES = {
    "gptq": (formats.gptq, {}, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq-asymmetric": (formats.gptq, {"symmetric": False}, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq-v2": (
        formats.gptq,
        {"symmetric": False, "version": 2},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "gptq-8": (formats.gptq, {"bits": 8}, {"quant_method": "gptq", "bits": 8, "group_size": 32}),
    "gptq-8-asymmetric": (
        formats.gptq,
        {"bits": 8, "symmetric": False},
        {"quant_method": "gptq", "bits": 8, "group_size": 32},
    ),
    "gptq-row": (formats.gptq, {"group": -1}, {"quant_method": "gptq", "bits": 4, "group_size": -1}),
    "gptq-order": (
        formats.gptq,
        {"order": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    ),
    "awq": (formats.awq, {}, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "awq-symmetric": (formats.awq, {"symmetric": True}, {"quant_method": "awq", "bits": 4, "group_size": 32}),
    "compressed-4": (formats.compressed, {}, {"num_bits": 4, "group_size": 32, "strategy": "group"}),
    "compressed-8": (formats.compressed, {"bits": 8}, {"num_bits": 8, "group_size": 32, "strategy": "group"}),
    "compressed-int8": (
        formats.compressed,
        {"bits": 8, "group": -1, "form": "int-quantized"},
        {"num_bits": 8, "group_size": None, "strategy": "channel"},
    ),
}
EXACT = {"gptq", "gptq-8", "gptq-row", "awq-symmetric", "compressed-4", "compressed-8", "compressed-int8"}


def quantization_config(case: str) -> dict:
    _, options, config = CASES[case]
    if "quant_method" in config:
        return config
    group = {"weights": {**config, "symmetric": True, "type": "int", "actorder": None}, "targets": ["Linear"]}
    form = options.get("form", "pack-quantized")
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def quantised_checkpoint(path, case: str):
    """A directory as its quantiser leaves it, and every weight's values by name."""
    pack, options, _ = CASES[case]
    tiny_checkpoint(path, "llama", dtype=torch.float16)
    stored, values = load_file(path / "model.safetensors"), {}
    for seed, (name, weight) in enumerate(list(stored.items())):
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module.rpartition(".")[2] in BLOCK_OF:
            del stored[name]
            tensors, values[name] = pack(*weight.shape, seed=seed, **options)
            stored |= {f"{module}.{last}": tensor for last, tensor in tensors.items()}
        else:
            values[name] = weight.double()
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", {**config, "quantization_config": quantization_config(case)})
    return values


@pytest.mark.parametrize("case", CASES)
def test_every_module_is_worth_what_its_format_says(tmp_path, case):
    wanted = quantised_checkpoint(tmp_path, case)
    stored = stored_weights(tmp_path, ModelConfig.from_directory(tmp_path))
    modules = [name for name in wanted if name.split(".")[-2] in BLOCK_OF]
    assert len(modules) == 14 and stored.quantized
    for name in modules:
        weight = stored.get(name.removeprefix("model."))
        ours = dequantize(weight)
        if case in EXACT:
            assert torch.equal(ours, wanted[name].float()), name
        elif case == "gptq-order":  # through int8 by row: half a step
            step = wanted[name].abs().amax(1, keepdim=True) / 127
            assert ((ours - wanted[name]).abs() <= 0.51 * step).all(), name
        else:  # scale * zero is a float16
            largest = weight.mins.float().abs().max()
            assert (ours - wanted[name]).abs().max() <= largest * 2**-11, name


@pytest.mark.parametrize("case", ["gptq-asymmetric", "awq", "compressed-int8"])
def test_logits_equal_transformers_on_the_values(tmp_path, case):
    values = quantised_checkpoint(tmp_path / "quantised", case)
    plain = tiny_checkpoint(tmp_path / "plain", "llama")
    oracle = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    oracle.load_state_dict({name: value.float() for name, value in values.items()})
    with torch.no_grad():
        wanted = oracle(torch.tensor([PROMPT])).logits[0]
    for _ in range(2):  # made, then mapped
        decoder = Decoder.from_directory(tmp_path / "quantised", cache=tmp_path / "cache")
        assert (logits(decoder) - wanted).norm() < 0.05 * wanted.norm()
    assert decoder.weight_format == ("int8" if "int8" in case else "int4")
    assert isinstance(decoder.lm_head, torch.Tensor)  # the formats leave it as it was
    assert decoder.embed.dtype == torch.float16


def test_other_formats_can_be_made_of_them(tmp_path):
    values = quantised_checkpoint(tmp_path, "gptq-asymmetric")
    name = "model.layers.0.mlp.down_proj.weight"
    as_floats = Decoder.from_directory(tmp_path, weights="bf16").state_dict()[name].float()
    as_int8 = Decoder.from_directory(tmp_path, weights="int8")
    assert (as_floats - values[name]).abs().max() < 2**-8 * values[name].abs().max()
    assert as_int8.weight_format == as_int8.lm_head.name == "int8"
    assert (as_int8.state_dict()[name] - values[name]).abs().max() < values[name].abs().max() / 127
    with pytest.raises(InvalidRequest, match="not in bfloat16"):
        Decoder.from_directory(tmp_path, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "fp8"}, "by fp8 are not supported; supported are gptq, awq, compressed-tensors and GGUF"),
        ({}, None),
        ({"bits": 4}, "an unnamed method"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits is not supported; 4 and 8 are"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin' is not supported"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "groups of 16 is not supported"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv', is not supported"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "'float-quantized' is not supported"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": False}}},
            },
            "symmetric integers with 4 or 8 bits",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, config, message):
    quantised_checkpoint(tmp_path, "gptq")
    content = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**content, "quantization_config": config})
    with pytest.raises(ModelError, match=re.escape(message) if message else "has no tensor 'layers.0.self_attn.q_proj"):
        Decoder.from_directory(tmp_path)


@pytest.mark.parametrize("change", [lambda t: None, lambda t: t[:-1]], ids=["missing", "of another size"])
def test_a_module_that_is_not_whole_is_named(tmp_path, change):
    quantised_checkpoint(tmp_path, "gptq")
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.scales"
    changed = change(stored.pop(name))
    if changed is not None:
        stored[name] = changed.contiguous()
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        Decoder.from_directory(tmp_path)
