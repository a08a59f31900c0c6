"""LoRA adapters in PEFT's directory format: `adapter_config.json` beside `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coserve.errors import ModelError
from coserve.kernels import LoraLayer, LoraWeights
from coserve.kernels.device import CPU, is_gpu
from coserve.models.config import ModelConfig
from coserve.models.matrices import BLOCK_OF, module_sizes

_PREFIX = "base_model.model.model.layers."


@dataclass(frozen=True)
class Adapter:
    """Weights ready to serve: one `LoraLayer` for each layer of the base model."""

    name: str
    layers: Sequence[LoraLayer]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "adapter_config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f"{path} is not an adapter: it has no adapter_config.json.") from None
    except ValueError as error:
        raise ModelError(f"{path}/adapter_config.json is not JSON: {error}.") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(f"adapter {path} is of type {config.get('peft_type')!r}; only 'LORA' is supported.")
    refused = [key for key in ("use_dora", "modules_to_save", "layer_replication") if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise ModelError(f"adapter {path} uses {', '.join(refused)}, which coserve does not serve.")
    return config


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's scaling of one module; `alpha_pattern` keys match the end of the module's name."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for key, a in patterns.items() if module.endswith(key)), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def load_adapter(name: str, path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device = CPU) -> Adapter:
    """Read a PEFT directory for a base model, onto its device. Raises `ModelError` naming what does not fit."""
    settings = _read_config(path)
    try:
        with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}/adapter_model.safetensors: {error}.") from None
    layers: list[dict[str, LoraWeights]] = [{} for _ in range(config.num_hidden_layers)]
    sizes = module_sizes(config)
    for key in (k for k in tensors if k.endswith(".lora_A.weight")):
        module = key.removesuffix(".lora_A.weight")
        index, _, proj = module.removeprefix(_PREFIX).replace(".self_attn.", ".").replace(".mlp.", ".").partition(".")
        if not key.startswith(_PREFIX) or proj not in sizes or not index.isdigit() or int(index) >= len(layers):
            raise ModelError(f"adapter {path} adapts {module!r}, which {config.architecture} does not have.")
        a, b = tensors[key], tensors.get(f"{module}.lora_B.weight")
        wanted = sizes[proj]
        if b is None or a.shape[1] != wanted[0] or b.shape[0] != wanted[1] or a.shape[0] != b.shape[1]:
            raise ModelError(f"adapter {path} was made for another base model: {module!r} has other sizes.")
        scaling = _scaling(settings, module, a.shape[0])
        layers[int(index)][proj] = LoraWeights(a.to(device, dtype), b.to(device, dtype), scaling)
    if not any(layers):
        raise ModelError(f"adapter {path} holds no LoRA weights.")
    if is_gpu(device):
        torch.cuda.current_stream(device).synchronize()  # the engine's stream does not wait for this thread's
    return Adapter(name, [LoraLayer(modules) for modules in layers])


def save_adapter(
    path: Path,
    weights: Mapping[tuple[int, str], tuple[Tensor, Tensor]],
    *,
    base_model: str,
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Sequence[str],
) -> None:
    """Write (layer, module) -> (a, b) as PEFT does. `path` is complete when this returns, or does not exist."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {}
    for (layer, module), (a, b) in weights.items():
        prefix = f"{_PREFIX}{layer}.{BLOCK_OF[module]}.{module}"
        tensors[f"{prefix}.lora_A.weight"] = a.detach().contiguous()
        tensors[f"{prefix}.lora_B.weight"] = b.detach().contiguous()
    save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "target_modules": list(target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (part / "adapter_config.json").write_text(json.dumps(config, indent=2))
    shutil.rmtree(path, ignore_errors=True)
    part.replace(path)
