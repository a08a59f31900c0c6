"""Training on its own, without an engine: an adapter, or all weights of a model (`method="full"`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from coserve.engine.blocks import blocks_for
from coserve.models.decoder import Decoder
from coserve.models.tokenizer import Tokenizer
from coserve.models.weights import INDEX_FILE
from coserve.roofline import Chip, Estimator, Roofline
from coserve.training.config import TrainingConfig, micro_batch_tokens
from coserve.training.data import Example, encode_all
from coserve.training.passes import Machine
from coserve.training.trainer import Trainer, TrainingEvent


def train_model(
    model: Path,
    examples: Sequence[Example],
    config: TrainingConfig,
    output: Path,
    *,
    work_directory: Path,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    weights: str = "auto",
    valid: Sequence[Example] = (),
    on_event: Callable[[TrainingEvent], None] = lambda event: None,
) -> Path:
    """Train a model directory on examples with all of this machine; returns `output`.

    `output` becomes a PEFT directory, or for `method="full"` a model directory as on the hub. `work_directory` keeps
    the checkpoints that a run which was cut off goes on from. `device`, `dtype`, `weights`: see
    `Decoder.from_directory`. Raises `ModelError`, `DataError`, `InvalidRequest`.
    """
    decoder = Decoder.from_directory(model, device=device, dtype=dtype, weights=weights)
    tokenizer = Tokenizer.from_directory(model)
    longest = min(decoder.max_positions, config.max_length or decoder.max_positions)
    sequences = [s for s in encode_all(examples, tokenizer, longest) if s is not None]
    checks = [s for s in encode_all(valid, tokenizer, longest) if s is not None]
    trainer = Trainer(
        machine_for(decoder, max(longest, micro_batch_tokens(config, decoder.device))),
        sequences,
        config,
        work_directory,
        base_model=str(model),
        valid=checks,
        on_event=on_event,
    )
    trainer.run()
    if trainer.adapter is not None:
        trainer.adapter.save(output, str(model))
    else:
        save_model(decoder, model, output)
    return output


def machine_for(decoder: Decoder, tokens: int) -> Machine:
    """A machine with KV blocks of its own for micro-batches of up to `tokens` tokens, and nobody to share it with."""
    blocks = blocks_for(tokens) if decoder.device.type == "cpu" else 1  # a GPU's passes need no KV cache
    nobody_waits = Chip("unmeasured", str(decoder.dtype), bandwidth=1e10, flops=1e11)
    return Machine(
        decoder,
        decoder.new_cache(blocks),
        range(blocks),
        Estimator(Roofline(nobody_waits)),
    )


def save_model(decoder: Decoder, source: Path, output: Path) -> None:
    """Write a model directory: the decoder's weights, and everything else as `source` has it."""
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".gguf") and file.name != INDEX_FILE:
            shutil.copy(file, part / file.name)
    settings = json.loads((part / "config.json").read_text())
    settings["torch_dtype"] = str(decoder.weight_dtype).removeprefix("torch.")
    for name in ("dtype", "quantization_config"):
        settings.pop(name, None)
    (part / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    weights = {name: tensor.to(decoder.weight_dtype) for name, tensor in decoder.state_dict().items()}
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(output, ignore_errors=True)
    part.replace(output)
