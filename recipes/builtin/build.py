"""Puts the pieces of a model directory together: tokenizer, configuration, weights."""

from __future__ import annotations

from pathlib import Path

import torch

from recipes.builtin import model, tokenizer
from recipes.builtin.conversations import training_conversations

TOKENIZER_CONVERSATIONS = 20_000


def write_tokenizer(directory: Path, seed: int = 0) -> int:
    """Trains and writes the tokenizer; returns how many entries it has."""
    texts = (
        message["content"]
        for conversation in training_conversations(TOKENIZER_CONVERSATIONS, seed)
        for message in conversation.messages
    )
    made = tokenizer.train_tokenizer(texts)
    tokenizer.save_tokenizer(made, directory, model.CONTEXT)
    return made.get_vocab_size()


def write_initial_model(directory: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Writes a complete directory of an untrained model."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(directory, seed)
    eos, pad = tokenizer.SPECIAL.index(tokenizer.END), tokenizer.SPECIAL.index(tokenizer.PAD)
    model.write_config(directory, vocabulary, eos, pad, str(dtype).removeprefix("torch."))
    model.save_weights(model.initial_weights(vocabulary, seed), directory, dtype)
