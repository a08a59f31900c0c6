import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from coserve.models import ModelConfig, rope_frequencies

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default"},
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", **LLAMA3},
        {"rope_type": "llama3", **LLAMA3, "rope_theta": 500000.0, "factor": 32.0},
        {"rope_type": "yarn", **YARN},
        {"rope_type": "yarn", **YARN, "rope_theta": 1e6, "factor": 40.0},
        {"rope_type": "yarn", **YARN, "attention_factor": 0.7},
        {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
        {"rope_type": "yarn", **YARN, "truncate": False},
        {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 8},
    ],
    ids=lambda parameters: "-".join(f"{value}" for value in parameters.values()),
)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_frequencies_are_those_of_transformers_to_the_bit(parameters, head_dim):
    theirs = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    ours = ModelConfig.from_dict({**theirs.to_dict(), "architectures": ["LlamaForCausalLM"]})
    expected = LlamaRotaryEmbedding(theirs)
    frequencies, attention_scaling = rope_frequencies(ours)
    assert frequencies.dtype == torch.float32
    torch.testing.assert_close(frequencies, expected.inv_freq, rtol=0, atol=0)
    assert attention_scaling == expected.attention_scaling


def test_yarn_without_a_factor_takes_the_ratio_of_the_contexts():
    scaling = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512}
    config = transformers.LlamaConfig(max_position_embeddings=2048).to_dict()
    config = {**config, "architectures": ["LlamaForCausalLM"], "rope_parameters": None}
    implied = rope_frequencies(ModelConfig.from_dict({**config, "rope_scaling": scaling}))
    explicit = rope_frequencies(ModelConfig.from_dict({**config, "rope_scaling": {**scaling, "factor": 4.0}}))
    torch.testing.assert_close(implied[0], explicit[0], rtol=0, atol=0)
    assert implied[1] == explicit[1]
