"""Tiny random-weight checkpoints, laid out as on the hub. `transformers` makes them: it is their oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from coserve.models.adapter import save_adapter
from coserve.models.config import ModelConfig
from coserve.models.matrices import module_sizes

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{% for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""

SENTENCES = (
    "A decode step reads every weight once to do very little arithmetic.",
    "Training is an arithmetic problem; generating tokens is a memory-bandwidth problem.",
    "The quick brown fox jumps over the lazy dog, 0123456789 times!",
    "user system assistant: what is the bandwidth of this chip? It is 40 GB/s.",
    "Grüße aus Köln, à bientôt, привет, 你好, and a smile 🙂.",
)

_CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}


def tiny_tokenizer(vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE tokenizer trained on `SENTENCES`; it can spell any text; ChatML's are special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def save_tokenizer(directory: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` with the chat template, `special_tokens_map.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (tokenizer or tiny_tokenizer()).save(str(directory / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        {
            **special,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def tiny_checkpoint(
    directory: str | Path,
    family: str = "llama",
    *,
    seed: int = 0,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Save a model with random weights and its tokenizer in `directory`; return it.

    `family`: "llama", "mistral", "qwen2" or "qwen3". `sharded`: several safetensors files and their index.
    `overrides` go to the family's `transformers` configuration. The same arguments make the same files.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()

    directory = Path(directory)
    tokenizer = tiny_tokenizer()
    config_class, model_class = (getattr(transformers, name) for name in _CLASSES[family])
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # the default 0.02 gives nearly flat logits
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        **overrides,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**settings))
        _randomize_constants(model, settings["initializer_range"])
    model.to(dtype).save_pretrained(directory, max_shard_size="100KB" if sharded else "5GB")
    save_tokenizer(directory, tokenizer)
    return directory


def random_adapter(path: Path, config: ModelConfig, rank: int = 4) -> Path:
    """In PEFT's format, of all modules of a model."""
    generator = torch.Generator().manual_seed(rank)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    weights = {
        (layer, module): (matrix(rank, n_in), matrix(n_out, rank))
        for layer in range(config.num_hidden_layers)
        for module, (n_in, n_out) in module_sizes(config).items()
    }
    targets = list(module_sizes(config))
    save_adapter(path, weights, base_model="tiny", r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets)
    return path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _randomize_constants(model: torch.nn.Module, spread: float) -> None:
    """Biases start as zeros and norms as ones, which would hide that a decoder forgets them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * spread)
