"""Loading to a GPU: how fast, what is left behind; and what is measured of it."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from coserve.kernels.calibration import format_name, load_or_measure_chip
from coserve.kernels.transfer import Transfer
from coserve.models.adapter import load_adapter, save_adapter
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder
from coserve.models.matrices import BLOCK_OF, module_sizes

GPU = torch.device("cuda", 0)
SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **SIZES,
    "vocab_size": 16384,
    "num_hidden_layers": 3,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """1.6 GB: layers as Llama 3.1 8B has them, with numbers that repeat themselves."""
    path = tmp_path_factory.mktemp("large")
    (path / "config.json").write_text(json.dumps(CONFIG))
    config = ModelConfig.from_directory(path)
    numbers = torch.randn((1 << 20) + 1).mul_(0.02).to(torch.bfloat16)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return numbers.repeat(-(-rows * columns // numbers.numel()))[: rows * columns].view(rows, columns)

    tensors = {f"{name}.weight": matrix(16384, 4096) for name in ("model.embed_tokens", "lm_head")}
    tensors["model.norm.weight"] = torch.ones(4096, dtype=torch.bfloat16)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(4096, dtype=torch.bfloat16)
        for name, (columns, rows) in module_sizes(config).items():
            tensors[f"{prefix}.{BLOCK_OF[name]}.{name}.weight"] = matrix(rows, columns)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "fp8"])
def test_how_fast_a_checkpoint_is_loaded(large, capsys, weights):
    size = (large / "model.safetensors").stat().st_size
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info(GPU)[0]
    seconds = []
    for _ in range(2):  # the first one warms up the GPU, and the page cache
        decoder = None
        started = time.perf_counter()
        decoder = Decoder.from_directory(large, device="cuda", weights=weights)
        torch.cuda.synchronize(GPU)
        seconds.append(time.perf_counter() - started)
    held = sum(t.nbytes for t in {t.data_ptr(): t for t in decoder.memory()}.values())
    taken = before - torch.cuda.mem_get_info(GPU)[0]
    with capsys.disabled():
        said = ", ".join(f"{s:.2f} s ({size / s / 1e9:.1f} GB/s)" for s in seconds)
        print(f"\n{weights}: {size / 1e9:.2f} GB in {said}; holds {held / 1e9:.2f}, takes {taken / 1e9:.2f} GB")
    assert decoder.weight_format == {"bf16": "bfloat16", "fp8": "float8"}.get(weights, weights)
    assert taken < held + (1 << 30)  # what changing formats took is given back


@pytest.mark.parametrize(("weights", "name"), [("bfloat16", "bfloat16"), ("int4", "int4 in bfloat16")])
def test_the_gpu_is_measured_and_remembered(tmp_path, capsys, weights, name):
    started = time.perf_counter()
    chip = load_or_measure_chip(tmp_path / "chip.json", torch.bfloat16, weights, GPU)
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f"\n{chip} in {seconds:.2f} s")
    assert chip.format == name == format_name(torch.bfloat16, weights) and chip.name == torch.cuda.get_device_name(GPU)
    assert 1e11 < chip.bandwidth < 1e13 and 1e13 < chip.flops < 1e16
    assert 0.2 < chip.efficiency <= 1 and 0 <= chip.overlap <= 1
    assert load_or_measure_chip(tmp_path / "chip.json", torch.bfloat16, weights, GPU) == chip


def test_there_and_back_again_through_pinned_memory():
    """More than once through both buffers, of a size that fits none of them."""
    transfer = Transfer(GPU, 1 << 20)
    for size in (1, 1 << 20, (5 << 20) + 3):
        sent = torch.randint(0, 256, (size,), dtype=torch.uint8)
        there = transfer.to_device(sent)
        back = torch.zeros_like(sent)
        transfer.download(back, there)
        assert there.is_cuda and torch.equal(back, sent) and torch.equal(there.cpu(), sent)


def test_an_adapter_is_loaded_beside_its_model(large, tmp_path):
    config = ModelConfig.from_directory(large)
    weights = {(0, "q_proj"): (torch.randn(8, 4096), torch.randn(4096, 8))}
    options = {"base_model": "large", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
    save_adapter(tmp_path / "adapter", weights, **options)
    adapter = load_adapter("one", tmp_path / "adapter", config, torch.bfloat16, GPU)
    (lora,) = adapter.layers[0].modules.values()
    assert lora.a.device == lora.b.device == GPU and lora.a.dtype == torch.bfloat16
