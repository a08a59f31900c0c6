"""Models' shapes: parameters as published, bytes and FLOPs as the architectures have them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.errors import InvalidRequest, ModelError
from coserve.planner.shape import ModelShape, known_models, load_shape

EXACT = {  # elements of the published checkpoints, a tied output matrix once
    "meta-llama/Llama-2-7b": 6_738_415_616,
    "meta-llama/Llama-2-70b": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/phi-4": 14_659_507_200,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-1b-pt": 999_885_952,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "mosaicml/mpt-7b": 6_649_286_656,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "meta-llama/Llama-2-13b": 13_015_864_320,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "codellama/CodeLlama-13b-hf": 13_016_028_160,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-27b": 27_227_128_320,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "openai/gpt-oss-120b": 116_829_156_672,
    "openai/gpt-oss-20b": 20_914_757_184,
}
STATED = {  # billions that the authors state: all, and active for a token
    "deepseek-ai/DeepSeek-V3": (671, 37),
    "moonshotai/Kimi-K2-Instruct": (1026, 32),
    "Qwen/Qwen3-235B-A22B": (235, 22),
    "openai/gpt-oss-120b": (116.83, 5.13),
    "openai/gpt-oss-20b": (20.91, 3.61),
    "google/gemma-4-26B-A4B": (25.2, 3.8),
    "meta-llama/Llama-3.1-405B": (405.9, 404),
    "Qwen/Qwen2.5-72B": (72.7, 71.5),
}
SHAPES = [load_shape(name) for name in known_models()]


@pytest.mark.parametrize("name", EXACT)
def test_parameters_equal_the_published_checkpoints(name: str) -> None:
    assert load_shape(name).parameters() == EXACT[name]


def test_some_forty_popular_models_are_known() -> None:
    assert len(known_models()) >= 40 and set(EXACT) | set(STATED) <= set(known_models())


NOMINAL = {  # billions in the name or the announcement
    "Qwen/Qwen3.5-27B": 27,
    "Qwen/Qwen3.5-35B-A3B": 35,
    "Qwen/Qwen3.5-397B-A17B": 397,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": 400,
    "google/gemma-3-27b-pt": 27,
    "mosaicml/mpt-30b": 30,
    "internlm/internlm-20b": 20,
}


@pytest.mark.parametrize("name", NOMINAL)
def test_parameters_are_near_the_size_that_the_authors_name(name: str) -> None:
    assert load_shape(name).parameters() / 1e9 == pytest.approx(NOMINAL[name], rel=0.01)


@pytest.mark.parametrize("name", STATED)
def test_all_and_active_parameters_are_what_the_authors_state(name: str) -> None:
    total, active = STATED[name]
    assert load_shape(name).parameters() / 1e9 == pytest.approx(total, rel=0.01)
    assert load_shape(name).active_parameters() / 1e9 == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_bytes_of_16_bit_weights_are_twice_the_parameters(shape: ModelShape) -> None:
    assert shape.weight_bytes("bfloat16") == pytest.approx(2 * shape.parameters())


def test_a_published_mxfp4_checkpoint_has_the_bytes_that_are_counted() -> None:
    assert load_shape("openai/gpt-oss-120b").weight_bytes("mxfp4") / 1e9 == pytest.approx(65.2, rel=0.02)


@pytest.mark.parametrize("size", ["1B", "7B", "70b", "405B", "1T"])
def test_a_size_maps_to_a_dense_shape_of_that_size(size: str) -> None:
    wanted = float(size[:-1]) * {"B": 1e9, "T": 1e12}[size[-1].upper()]
    assert load_shape(size).parameters() == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("name", ["Llama-3.3-70B-Instruct", "llama2-70b-99", "Qwen/Qwen3-235B-A22B-FP8", "DeepSeek-R1"])
def test_usual_names_lead_to_the_shape(name: str) -> None:
    assert load_shape(name).name in known_models()


def test_an_unknown_model_is_refused_with_names_that_are_near() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown model 'Lama-3\.1-8B'.*meta-llama/Llama-3\.1-8B") as error:
        load_shape("Lama-3.1-8B")
    assert error.value.param == "model"


def test_a_config_file_is_read_and_a_bad_one_names_the_field(tmp_path) -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert load_shape(str(file)).parameters() == 2 * 64 * 100 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    file.write_text(json.dumps({**config, "hidden_size": -1}))
    with pytest.raises(ModelError, match="hidden_size"):
        load_shape(tmp_path)


def test_latent_attention_keeps_a_tenth_of_what_grouped_queries_would() -> None:
    assert load_shape("deepseek-ai/DeepSeek-V3").kv_bytes(1) == 61 * (512 + 64) * 2


@given(st.sampled_from(SHAPES), st.integers(0, 10**6), st.integers(0, 10**6))
def test_kv_bytes_grow_with_the_context_and_stop_at_the_window(shape: ModelShape, one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert shape.kv_bytes(short) <= shape.kv_bytes(long)
    assert shape.kv_read_bytes(long) <= shape.kv_bytes(long)
    windows = [layer.attention.window for layer in shape.stack]
    if all(window is not None for window in windows):
        assert shape.kv_bytes(long) <= shape.kv_bytes(max(windows))


@given(st.sampled_from(SHAPES), st.integers(1, 10**5), st.integers(1, 10**5), st.sampled_from(["bf16", "fp8", "nvfp4"]))
def test_a_step_reads_more_weights_for_more_tokens_and_never_more_than_all(
    shape: ModelShape, one: int, other: int, format: str
) -> None:
    few, many = sorted((one, other))
    assert shape.read_bytes(format, few) <= shape.read_bytes(format, many) <= shape.weight_bytes(format) * (1 + 1e-9)
    if shape.experts and few < many < shape.experts / shape.experts_per_token:
        assert shape.read_bytes(format, few) < shape.read_bytes(format, many)
