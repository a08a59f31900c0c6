"""Small tokenizers of each kind that the families use, and chat templates as models ship them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tiny import CHAT_TEMPLATE, SENTENCES, tiny_tokenizer, write_json

LLAMA3 = """\
{%- for message in messages %}
    {%- set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
    {%- set content = header + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

MISTRAL = """\
{{ bos_token }}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}"""

TOOLS = """\
{%- if tools %}
{{- 'Tools: ' + tools | tojson + '\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% continue %}{% endif %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.tool_calls %}
{{- message.tool_calls | tojson(indent=2) }}
{%- endif %}
{%- if message.reasoning_content is defined %}
{{- '<think>' + message.reasoning_content + '</think>' }}
{%- endif %}
{%- generation %}{{- message.content ~ '<|im_end|>\n' }}{% endgeneration %}
{%- endfor %}
{%- if enable_thinking is defined and not enable_thinking %}{{- 'No thinking.' }}{% endif %}
{{- strftime_now('%Y') }}"""


def chatml() -> Tokenizer:
    """Qwen's kind: byte-level BPE that adds nothing around a text."""
    return tiny_tokenizer()


def llama3() -> Tokenizer:
    """Byte-level BPE behind a regular expression; the post-processor puts a BOS token before a text."""
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return tokenizer


def llama2() -> Tokenizer:
    """SentencePiece's BPE as in Llama 2 and Mistral: "▁" for a space, byte tokens for rare characters."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(
        [s for s in SENTENCES if s.isascii()], trainers.BpeTrainer(vocab_size=160, show_progress=False)
    )
    learned = trained.get_vocab()
    special = ["<unk>", "<s>", "</s>"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned, key=learned.get)]
    merges = [
        (token[:i], token[i:])
        for token in sorted(learned, key=learned.get)
        for i in range(1, len(token))
        if token[:i] in learned and token[i:] in learned
    ]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece's Unigram with the Metaspace decoder."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    """None of ours: a decoder that we do not take apart."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


KINDS = {  # how to make it, its special tokens, its chat template
    "chatml": (chatml, {"bos_token": None, "eos_token": "<|im_end|>"}, CHAT_TEMPLATE),
    "llama3": (llama3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, LLAMA3),
    "llama2": (llama2, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL),
    "unigram": (unigram, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, MISTRAL),
    "wordpiece": (wordpiece, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]"}, MISTRAL),
}


def save(directory: Path, kind: str, **config) -> Path:
    """Write a tokenizer of this kind as on the hub; `config` goes over its `tokenizer_config.json`."""
    make, special_tokens, template = KINDS[kind]
    directory.mkdir(parents=True, exist_ok=True)
    make().save(str(directory / "tokenizer.json"))
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **special_tokens}
    write_json(directory / "tokenizer_config.json", {**defaults, **config})
    return directory
