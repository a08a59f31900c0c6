"""The adapter in training: PEFT's initial values, the layers that the forward goes through, and its export."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from coserve.kernels import LoraLayer, LoraWeights
from coserve.models.adapter import save_adapter
from coserve.models.config import ModelConfig
from coserve.models.matrices import module_sizes
from coserve.training.config import LoraConfig
from coserve.training.dropout import RowDropout
from coserve.training.parameters import Parameters


class LoraAdapter:
    """Trained LoRA weights for every layer of a base model. A is Kaiming-uniform, B is zero, as in PEFT."""

    def __init__(
        self,
        model: ModelConfig,
        config: LoraConfig,
        *,
        dtype: torch.dtype,
        weight_decay: float,
        seed: int,
        device: torch.device | None = None,
    ):
        """`device`: where it is trained; None is the CPU. A seed's values are the same on all of them."""
        self.config, self.model = config, model
        generator = torch.Generator().manual_seed(seed)
        sizes = module_sizes(model)
        groups: dict[str, dict[str, Tensor]] = {}
        for layer in range(model.num_hidden_layers):
            group = groups.setdefault(f"layer {layer}", {})
            for module in config.targets:
                n_in, n_out = sizes[module]
                bound = 1 / math.sqrt(n_in)  # Kaiming-uniform with a = sqrt(5)
                a = (torch.rand(config.r, n_in, generator=generator) * 2 - 1) * bound
                group[f"{layer}.{module}.a"] = a.to(device)
                group[f"{layer}.{module}.b"] = torch.zeros(n_out, config.r, device=device)
        self.parameters = Parameters(groups, dtype, weight_decay)
        self._plain = self._layers(None)

    def layers(self, dropout_key: str | None, first_row: int) -> Sequence[LoraLayer]:
        """What the forward goes through, for inputs that start at a row; with dropout if a key is given."""
        if dropout_key is None or self.config.lora_dropout == 0:
            return self._plain
        return self._layers((dropout_key, first_row))

    def _layers(self, dropout: tuple[str, int] | None) -> list[LoraLayer]:
        leaves = self.parameters.leaves
        layers = []
        for layer in range(self.model.num_hidden_layers):
            modules = {
                module: LoraWeights(leaves[f"{layer}.{module}.a"], leaves[f"{layer}.{module}.b"], self.config.scaling)
                for module in self.config.targets
            }
            drop = None
            if dropout is not None:
                drop = RowDropout(self.config.lora_dropout, f"{dropout[0]}/{layer}", dropout[1])
            layers.append(LoraLayer(modules, drop))
        return layers

    def save(self, path: Path, base_model: str, masters: dict[str, Tensor] | None = None) -> None:
        """Write a PEFT directory from the float32 masters (or a copy of them)."""
        masters = {name: master.cpu() for name, master in (masters or self.parameters.masters).items()}
        weights = {
            (layer, module): (masters[f"{layer}.{module}.a"], masters[f"{layer}.{module}.b"])
            for layer in range(self.model.num_hidden_layers)
            for module in self.config.targets
        }
        c = self.config
        save_adapter(
            path,
            weights,
            base_model=base_model,
            r=c.r,
            lora_alpha=c.lora_alpha,
            lora_dropout=c.lora_dropout,
            target_modules=c.targets,
        )
