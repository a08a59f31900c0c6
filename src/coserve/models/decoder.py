"""The decoder: one file for all families, which differ only in biases, head norms, windows and RoPE.

Rows are flat: a batch of any segments is [rows, hidden_size]. What a layer needs comes in its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve import kernels
from coserve.kernels import (
    KVCache,
    LoraLayer,
    LoraRows,
    Loras,
    PagedLayout,
    StackedLora,
    differentiable,
    lora_linear,
    reference,
)
from coserve.kernels.device import choose_device, make_current
from coserve.kernels.layers import LayerTensors, NativeLayers
from coserve.kernels.linear import Weight
from coserve.models.checkpoint import Checkpoint
from coserve.models.config import ModelConfig
from coserve.models.cost import ModelCost
from coserve.models.loading import open_checkpoint
from coserve.models.matrices import BLOCK_OF, HEAD, Matrix, head_matrix, layer_matrices
from coserve.models.quantization import floats
from coserve.models.rope import rope_frequencies


@dataclass(frozen=True)
class AdapterRows:
    """Rows [start, end) of a batch go through an adapter: its layers, first to last."""

    start: int
    end: int
    layers: Sequence[LoraLayer]


@dataclass(frozen=True)
class StackedAdapters:
    """The adapters of all rows of a batch on a GPU, for each layer."""

    layers: Sequence[StackedLora]


class Linear:
    """Modules that read the same input, side by side: a matrix [sum of outputs, in], and biases for all or none."""

    def __init__(self, matrix: Matrix, checkpoint: Checkpoint, bias: bool):
        self.parts = matrix.parts
        self.weight = checkpoint.matrix(matrix)
        biases = [checkpoint.vector(f"{name}.bias", rows) for name, rows in matrix.modules.items()] if bias else []
        self.bias = torch.cat(biases) if biases else None

    def __call__(
        self,
        x: Tensor,
        loras: Loras = (),
        *,
        residual: Tensor | None = None,
        exact: bool = True,
        gradient_only: bool = False,
    ) -> Tensor:
        """`residual`, `exact`, `gradient_only`: see `lora_linear`."""
        return lora_linear(
            x, self.weight, self.bias, self.parts, loras, residual=residual, exact=exact, gradient_only=gradient_only
        )

    def gated(self, x: Tensor, loras: Loras = (), *, exact: bool = True) -> Tensor:
        """silu of the first half of the outputs times the second half."""
        return kernels.gated_linear(x, self.weight, self.bias, self.parts, loras, exact=exact)


class DecoderLayer:
    """Attention and MLP, in two halves around the attention core, so that training can cut between them."""

    def __init__(self, config: ModelConfig, index: int, checkpoint: Checkpoint):
        def norm(name: str, size: int) -> Tensor:
            return checkpoint.vector(f"layers.{index}.{name}.weight", size)

        matrices = layer_matrices(config, index)
        self.config, self.index = config, index
        self.window = config.sliding_windows[index] if config.sliding_windows else None
        self.qkv = Linear(matrices["qkv"], checkpoint, config.attention_bias)
        self.o = Linear(matrices["o"], checkpoint, config.attention_output_bias)
        self.gate_up = Linear(matrices["gate_up"], checkpoint, config.mlp_bias)
        self.down = Linear(matrices["down"], checkpoint, config.mlp_bias)
        self.input_norm = norm("input_layernorm", config.hidden_size)
        self.post_norm = norm("post_attention_layernorm", config.hidden_size)
        self.q_norm = norm("self_attn.q_norm", config.head_dim) if config.qk_norm else None
        self.k_norm = norm("self_attn.k_norm", config.head_dim) if config.qk_norm else None

    def project_qkv(self, x: Tensor, loras: Loras = (), *, exact: bool = True) -> Tensor:
        """x [rows, hidden] -> [rows, (heads + 2 kv_heads) * head_dim], before head norms and RoPE."""
        return self.qkv(kernels.rms_norm(x, self.input_norm, self.config.rms_norm_eps), loras, exact=exact)

    def split_heads(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiable: q, k, v [rows, heads, head_dim], ready for attention. cos, sin [rows, head_dim / 2]."""
        c = self.config
        return reference.split_heads(
            qkv,
            c.num_attention_heads,
            c.num_key_value_heads,
            self.q_norm,
            self.k_norm,
            c.rms_norm_eps,
            cos,
            sin,
            norm=differentiable.rms_norm,
            turn=differentiable.rotate,
        )

    def finish(
        self,
        x: Tensor,
        attended: Tensor,
        loras: Loras = (),
        *,
        exact: bool = True,
        gradient_only: bool = False,
    ) -> Tensor:
        """x [rows, hidden] and attention's result [rows, heads * head_dim] -> the layer's output [rows, hidden].

        `gradient_only`: a recomputation for the backward, which needs everything but the last product's value.
        """
        h = self.o(attended, loras, residual=x, exact=exact)
        normed = kernels.rms_norm(h, self.post_norm, self.config.rms_norm_eps)
        activated = self.gate_up.gated(normed, loras, exact=exact)
        return self.down(activated, loras, residual=h, exact=exact, gradient_only=gradient_only)

    def forward(
        self,
        x: Tensor,
        layout: PagedLayout,
        cache: KVCache,
        rope: tuple[Tensor, Tensor],
        loras: Loras = (),
        *,
        exact: bool = True,
    ) -> Tensor:
        """One layer over a batch's rows, without gradients; writes this layer's keys and values into the cache.

        `exact`: a row's numbers do not depend on its company, as those who are served may expect.
        """
        c = self.config
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        qkv = self.project_qkv(x, loras, exact=exact)
        attended = kernels.rope_and_attend(
            qkv,
            self.q_norm,
            self.k_norm,
            c.rms_norm_eps,
            *rope,
            layout,
            cache,
            self.index,
            heads,
            kv_heads,
            c.head_dim**-0.5,
            self.window,
        )
        return self.finish(x, attended, loras, exact=exact)

    @property
    def computed_with(self) -> LayerTensors:
        matrices = [(linear.weight, linear.bias) for linear in self.linears.values()]
        return LayerTensors(matrices, (self.input_norm, self.post_norm, self.q_norm, self.k_norm), self.window)

    @property
    def linears(self) -> dict[str, Linear]:
        return {"qkv": self.qkv, "o": self.o, "gate_up": self.gate_up, "down": self.down}

    def tensors(self) -> dict[str, Tensor]:
        """This layer's own tensors by a short name; the ones that full training updates. Quantised ones never are."""
        named = {
            "input_norm": self.input_norm,
            "post_norm": self.post_norm,
            "q_norm": self.q_norm,
            "k_norm": self.k_norm,
        }
        for name, linear in self.linears.items():
            named[f"{name}.weight"], named[f"{name}.bias"] = _trainable(linear.weight), linear.bias
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class Decoder:
    """A causal language model's weights, and its forward pass over paged batches."""

    def __init__(self, checkpoint: Checkpoint, *, max_positions: int):
        """Raises `ModelError` naming a tensor that is missing or of another shape."""
        config = checkpoint.config
        self.config, self.dtype, self.device = config, checkpoint.formats.dtype, checkpoint.placement.device
        self.layers = [DecoderLayer(config, i, checkpoint) for i in range(config.num_hidden_layers)]
        self.norm = checkpoint.vector("norm.weight", config.hidden_size)
        self.lm_head = head = checkpoint.matrix(head_matrix(config))
        self.embed = head if config.tie_word_embeddings and isinstance(head, Tensor) else checkpoint.embedding()
        self.max_positions = max_positions
        frequencies, scaling = rope_frequencies(config)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies.float())
        self.rope = ((angles.cos() * scaling).to(self.device), (angles.sin() * scaling).to(self.device))
        checkpoint.placement.finish()

    @classmethod
    def from_directory(
        cls,
        path: Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        weights: str = "auto",
        max_positions: int | None = None,
        cache: Path | None = None,
    ) -> Decoder:
        """Load a model directory.

        `device`: "auto", "cpu", "cuda", "cuda:1"; a GPU becomes the calling thread's own (`choose_device`). `dtype`: of
        the arithmetic; None is the checkpoint's own, as far as the device computes in it (`auto_dtype`). `weights`: of
        the matrices, see `WeightFormats`. `cache`: the directory that keeps quantised matrices; None quantises at each
        start. Raises `ModelError`, and `InvalidRequest` for formats that do not go together and a device that is not
        there.
        """
        chosen = choose_device(device)
        make_current(chosen)
        checkpoint = open_checkpoint(path, device=chosen, dtype=dtype, weights=weights, cache=cache)
        return cls(checkpoint, max_positions=max_positions or checkpoint.config.max_position_embeddings)

    @property
    def weight_format(self) -> str:
        """The format of the matrices, "bfloat16" or "int4" say. Of the largest of the first layer, if they differ."""
        weight = self.layers[0].gate_up.weight
        return str(weight.dtype).removeprefix("torch.") if isinstance(weight, Tensor) else weight.name

    @property
    def weight_dtype(self) -> torch.dtype:
        """The number format of the matrices; of quantised ones, the one that a copy in floats takes."""
        weight = self.layers[0].gate_up.weight
        return weight.dtype if isinstance(weight, Tensor) else torch.bfloat16

    @property
    def quantized(self) -> bool:
        """Whether there are matrices of fewer bits, which no gradient updates."""
        return not all(isinstance(weight, Tensor) for weight in self._matrices())

    def _matrices(self) -> Iterator[Weight]:
        yield self.lm_head
        for layer in self.layers:
            yield from (linear.weight for linear in layer.linears.values())

    @cached_property
    def cost(self) -> ModelCost:
        mlp = sum(m.weight.nbytes for layer in self.layers for m in (layer.o, layer.gate_up, layer.down))
        qkv = sum(layer.qkv.weight.nbytes for layer in self.layers)
        return ModelCost.of(
            self.config,
            layer_bytes=(qkv + mlp) / len(self.layers),
            mlp_bytes=mlp / len(self.layers),
            head_bytes=self.lm_head.nbytes,
            kv_bytes=self.dtype.itemsize,
        )

    def embedded(self, token_ids: Tensor) -> Tensor:
        """token_ids [rows] -> [rows, hidden]. Differentiable."""
        return F.embedding(token_ids, self.embed).to(self.dtype)

    def new_cache(self, blocks: int) -> KVCache:
        c = self.config
        return KVCache(c.num_hidden_layers, blocks, c.num_key_value_heads, c.head_dim, self.dtype, device=self.device)

    def forward(
        self,
        token_ids: Tensor,
        layout: PagedLayout,
        cache: KVCache,
        adapters: Sequence[AdapterRows] | StackedAdapters = (),
        keep: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """token_ids [rows] -> hidden states [rows, hidden] before the final norm; runs without gradients.

        `keep(layer, x)` is shown every layer's input, and the result as layer `num_hidden_layers`.
        """
        x = self.embedded(token_ids)
        if not adapters and keep is None and self._native is not None:
            return self._native(x, self.rope, layout, cache)
        for layer in self.layers:
            if keep is not None:
                keep(layer.index, x)
            x = layer.forward(x, layout, cache, self.rope, _loras(adapters, layer.index))
        if keep is not None:
            keep(len(self.layers), x)
        return x

    @cached_property
    def _native(self) -> NativeLayers | None:
        """All layers at once, where there are kernels for that; the same numbers."""
        c, layers = self.config, [layer.computed_with for layer in self.layers]
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        return NativeLayers.of(layers, self.dtype, heads, kv_heads, c.head_dim, c.rms_norm_eps)

    def forget_addresses(self) -> None:
        """The tensors' memory is about to move."""
        self.__dict__.pop("_native", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> [rows, vocab], in the model's number format."""
        return kernels.linear(kernels.rms_norm(hidden, self.norm, self.config.rms_norm_eps), self.lm_head)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that full training updates, by a short name ("layers.0.qkv.weight", ...)."""
        named: dict[str, Tensor] = {"embed": self.embed, "norm": self.norm}
        if isinstance(self.lm_head, Tensor) and self.lm_head is not self.embed:
            named[HEAD] = self.lm_head
        for layer in self.layers:
            named |= {f"layers.{layer.index}.{name}": tensor for name, tensor in layer.tensors().items()}
        return named

    def memory(self) -> Iterator[Tensor]:
        """Every tensor that the model holds, quantised ones' parts among them."""
        yield from (self.embed, self.norm, *self.rope)
        for weight in self._matrices():
            yield from (weight,) if isinstance(weight, Tensor) else weight.tensors().values()
        for layer in self.layers:
            yield from layer.tensors().values()

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under Hugging Face's names, as `model.safetensors` holds them; quantised ones as floats."""
        named = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if not self.config.tie_word_embeddings:
            named["lm_head.weight"] = floats(self.lm_head)
        for layer in self.layers:
            prefix = f"model.layers.{layer.index}"
            named[f"{prefix}.input_layernorm.weight"] = layer.input_norm
            named[f"{prefix}.post_attention_layernorm.weight"] = layer.post_norm
            if layer.q_norm is not None and layer.k_norm is not None:
                named[f"{prefix}.self_attn.q_norm.weight"] = layer.q_norm
                named[f"{prefix}.self_attn.k_norm.weight"] = layer.k_norm
            for linear in layer.linears.values():
                weight = floats(linear.weight)
                for name, first, last in linear.parts:
                    module = f"{prefix}.{BLOCK_OF[name]}.{name}"
                    named[f"{module}.weight"] = weight[first:last]
                    if linear.bias is not None:
                        named[f"{module}.bias"] = linear.bias[first:last]
        return {name: tensor.detach().contiguous() for name, tensor in named.items()}


def _loras(adapters: Sequence[AdapterRows] | StackedAdapters, layer: int) -> Loras:
    if isinstance(adapters, StackedAdapters):
        return adapters.layers[layer]
    return [LoraRows(a.start, a.end, a.layers[layer]) for a in adapters]


def _trainable(weight: Weight) -> Tensor | None:
    return weight if isinstance(weight, Tensor) else None
