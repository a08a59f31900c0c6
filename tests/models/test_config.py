import pytest
import torch
import transformers

from coserve.errors import ModelError
from coserve.models import ModelConfig
from tests.tiny import write_json

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, **SIZES}
QWEN = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def written_by_transformers(family: str, **overrides) -> dict:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **overrides})
    return {**config.to_dict(), "architectures": [f"{family}ForCausalLM"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_what_transformers_writes(family):
    config = ModelConfig.from_dict(written_by_transformers(family, rms_norm_eps=1e-5))
    assert {name: getattr(config, name) for name in SIZES} == SIZES
    assert config.architecture == f"{family}ForCausalLM"
    assert config.rms_norm_eps == 1e-5
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_norms_are_those_of_the_transformers_model(family):
    wanted = written_by_transformers(family, attention_bias=True, mlp_bias=True, head_dim=16)
    config = ModelConfig.from_dict(wanted)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(
            getattr(transformers, f"{family}Config").from_dict(wanted)
        )
    layer = model.model.layers[0]
    assert config.attention_bias == (layer.self_attn.q_proj.bias is not None)
    assert config.attention_output_bias == (layer.self_attn.o_proj.bias is not None)
    assert config.mlp_bias == (layer.mlp.gate_proj.bias is not None)
    assert config.qk_norm == hasattr(layer.self_attn, "q_norm")


def test_head_dim_is_taken_from_the_file_else_from_the_family_else_by_division():
    assert ModelConfig.from_dict({**LLAMA, "head_dim": 32}).head_dim == 32
    assert ModelConfig.from_dict({**LLAMA, "head_dim": None}).head_dim == 16
    assert ModelConfig.from_dict({**LLAMA, "architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


def test_absent_key_value_heads_mean_one_for_each_head():
    assert ModelConfig.from_dict({**LLAMA, "num_key_value_heads": None}).num_key_value_heads == 4


def test_old_and_new_spellings_say_the_same():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "bfloat16"}
    middle = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "dtype": "bfloat16"}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}, "dtype": "bfloat16"}
    configs = [ModelConfig.from_dict({**LLAMA, **spelling}) for spelling in (old, middle, new)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].rope_theta == 5e5
    assert configs[0].rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert configs[0].torch_dtype == "bfloat16"


def test_a_stretched_context_counts_from_the_original_one():
    scaling = {"rope_type": "yarn", "factor": 4.0}
    config = ModelConfig.from_dict({**LLAMA, "rope_scaling": scaling})
    assert config.rope_scaling["original_max_position_embeddings"] == 256
    scaling["original_max_position_embeddings"] = 64
    config = ModelConfig.from_dict({**LLAMA, "rope_scaling": scaling})
    assert config.rope_scaling["original_max_position_embeddings"] == 64


def test_mistral_has_one_window_everywhere_or_none():
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"]}
    assert ModelConfig.from_dict({**mistral, "sliding_window": 32}).sliding_windows == (32, 32, 32)
    assert ModelConfig.from_dict({**mistral, "sliding_window": None}).sliding_windows == ()


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize("enabled", [True, False])
def test_qwen_windows_are_on_the_layers_that_transformers_gives_them(family, enabled):
    written = written_by_transformers(family, use_sliding_window=enabled, sliding_window=32, max_window_layers=1)
    expected = (None, 32, 32) if enabled else ()
    assert ModelConfig.from_dict(written).sliding_windows == expected
    del written["layer_types"]  # as written before layer_types existed
    assert ModelConfig.from_dict(written).sliding_windows == expected


def test_layer_types_say_which_layers_have_a_window():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = ModelConfig.from_dict({**QWEN, "use_sliding_window": True, "sliding_window": 8, "layer_types": kinds})
    assert config.sliding_windows == (8, None, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM",
        ),
        ({"architectures": None}, "architectures is missing"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, not 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ({"num_attention_heads": 6}, "must be a multiple of num_attention_heads"),
        ({"head_dim": 15}, "head_dim .15. must be even"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        (
            {"rope_scaling": {"type": "longrope"}},
            "'longrope' is not supported; supported are default, linear",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor of rope type linear must be a positive number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of rope type llama3"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_type .* is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": "gptq"}, "quantization_config must be an object"),
    ],
)
def test_an_unusable_configuration_is_refused_and_the_field_named(change, message):
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dict({**LLAMA, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention"]}, "list of 3 entries"),
        ({"max_window_layers": None}, "max_window_layers must be an integer"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "'linear_attention'"),
        ({"layer_types": ["sliding_attention"] * 3}, "use_sliding_window or sliding_window is off"),
    ],
)
def test_layer_types_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dict({**QWEN, **change})


def test_a_directory_is_read_and_a_missing_or_broken_file_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        ModelConfig.from_directory(tmp_path)
    write_json(tmp_path / "config.json", LLAMA)
    assert ModelConfig.from_directory(tmp_path) == ModelConfig.from_dict(LLAMA)
    (tmp_path / "config.json").write_text('{"architectures": ')
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object, not list"):
        ModelConfig.from_directory(tmp_path)
