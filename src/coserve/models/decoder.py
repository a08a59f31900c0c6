"""The decoder: one file for all families, which differ only in biases, head norms, windows and RoPE.

Rows are flat: a batch of any segments is [rows, hidden_size]. What a layer needs comes in its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from coserve import kernels
from coserve.errors import ModelError
from coserve.kernels import KVCache, LoraLayer, LoraRows, PagedLayout, differentiable, lora_linear, reference
from coserve.models.config import ModelConfig
from coserve.models.cost import ModelCost
from coserve.models.dtype import auto_dtype, weight_dtype
from coserve.models.rope import rope_frequencies
from coserve.models.weights import load_weights

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AdapterRows:
    """Rows [start, end) of a batch go through an adapter: its layers, first to last."""

    start: int
    end: int
    layers: Sequence[LoraLayer]


class Linear:
    """Modules that read the same input, side by side in one matrix: weight [sum of outputs, in]."""

    def __init__(self, modules: Mapping[str, Tensor], biases: Mapping[str, Tensor]):
        self.parts: list[tuple[str, int, int]] = []
        first = 0
        for name, weight in modules.items():
            self.parts.append((name, first, first + weight.shape[0]))
            first += weight.shape[0]
        self.weight = torch.cat(list(modules.values())) if len(modules) > 1 else next(iter(modules.values()))
        self.bias = torch.cat([biases[name] for name in modules]) if biases else None

    def __call__(
        self, x: Tensor, loras: Sequence[LoraRows] = (), *, exact: bool = True, gradient_only: bool = False
    ) -> Tensor:
        """`exact`, `gradient_only`: see `lora_linear`."""
        return lora_linear(x, self.weight, self.bias, self.parts, loras, exact=exact, gradient_only=gradient_only)


class DecoderLayer:
    """Attention and MLP, in two halves around the attention core, so that training can cut between them.

    `take(name, shape)` gives the checkpoint's tensor of that name, without the leading "model.".
    """

    def __init__(self, config: ModelConfig, index: int, take: Callable[[str, Sequence[int]], Tensor]):
        hidden, dim, ffn = config.hidden_size, config.head_dim, config.intermediate_size
        q_size, kv_size = config.num_attention_heads * dim, config.num_key_value_heads * dim
        sizes = {
            "self_attn.q_proj": (q_size, hidden),
            "self_attn.k_proj": (kv_size, hidden),
            "self_attn.v_proj": (kv_size, hidden),
            "self_attn.o_proj": (hidden, q_size),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }

        def own(name: str, shape: Sequence[int]) -> Tensor:
            return take(f"layers.{index}.{name}", shape)

        def linear(bias: bool, *names: str) -> Linear:
            weights = {n.split(".")[1]: own(f"{n}.weight", sizes[n]) for n in names}
            biases = {n.split(".")[1]: own(f"{n}.bias", sizes[n][:1]) for n in names} if bias else {}
            return Linear(weights, biases)

        attn = [f"self_attn.{x}_proj" for x in "qkv"]
        self.config, self.index = config, index
        self.window = config.sliding_windows[index] if config.sliding_windows else None
        self.qkv = linear(config.attention_bias, *attn)
        self.o = linear(config.attention_output_bias, "self_attn.o_proj")
        self.gate_up = linear(config.mlp_bias, "mlp.gate_proj", "mlp.up_proj")
        self.down = linear(config.mlp_bias, "mlp.down_proj")
        self.input_norm = own("input_layernorm.weight", (hidden,))
        self.post_norm = own("post_attention_layernorm.weight", (hidden,))
        self.q_norm = own("self_attn.q_norm.weight", (dim,)) if config.qk_norm else None
        self.k_norm = own("self_attn.k_norm.weight", (dim,)) if config.qk_norm else None

    def project_qkv(self, x: Tensor, loras: Sequence[LoraRows] = (), *, exact: bool = True) -> Tensor:
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
        loras: Sequence[LoraRows] = (),
        *,
        exact: bool = True,
        gradient_only: bool = False,
    ) -> Tensor:
        """x [rows, hidden] and attention's result [rows, heads * head_dim] -> the layer's output [rows, hidden].

        `gradient_only`: a recomputation for the backward, which needs everything but the last product's value.
        """
        h = x + self.o(attended, loras, exact=exact)
        normed = kernels.rms_norm(h, self.post_norm, self.config.rms_norm_eps)
        activated = kernels.silu_and_mul(self.gate_up(normed, loras, exact=exact))
        return h + self.down(activated, loras, exact=exact, gradient_only=gradient_only)

    def forward(
        self,
        x: Tensor,
        layout: PagedLayout,
        cache: KVCache,
        rope: tuple[Tensor, Tensor],
        loras: Sequence[LoraRows] = (),
        *,
        exact: bool = True,
    ) -> Tensor:
        """One layer over a batch's rows, without gradients; writes this layer's keys and values into the cache.

        `exact`: a row's numbers do not depend on its company, as those who are served may expect.
        """
        c = self.config
        heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
        qkv = self.project_qkv(x, loras, exact=exact)
        kernels.rope_and_store(
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
        )
        attended = kernels.paged_attention(
            qkv, layout, cache, self.index, heads, kv_heads, c.head_dim**-0.5, self.window
        )
        return self.finish(x, attended, loras, exact=exact)

    def tensors(self) -> dict[str, Tensor]:
        """This layer's own tensors by a short name; the ones that full training updates."""
        named = {
            "input_norm": self.input_norm,
            "post_norm": self.post_norm,
            "q_norm": self.q_norm,
            "k_norm": self.k_norm,
        }
        for name in ("qkv", "o", "gate_up", "down"):
            module: Linear = getattr(self, name)
            named[f"{name}.weight"], named[f"{name}.bias"] = module.weight, module.bias
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class Decoder:
    """A causal language model's weights, and its forward pass over paged batches."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Iterable[tuple[str, Tensor]],
        *,
        dtype: torch.dtype,
        max_positions: int,
    ):
        """Raises `ModelError` naming a tensor that is missing or of another shape."""
        named = {name.removeprefix("model."): tensor for name, tensor in weights}

        def take(name: str, shape: Sequence[int]) -> Tensor:
            tensor = named.get(name)
            if tensor is None:
                raise ModelError(f"the checkpoint has no tensor {name!r}, which {config.architecture} needs.")
            if tuple(tensor.shape) != tuple(shape):
                raise ModelError(f"tensor {name!r} has the shape {list(tensor.shape)}; config.json says {list(shape)}.")
            return tensor.to(weight_dtype(dtype, tensor.dtype) if tensor.dim() == 2 else dtype)

        self.config, self.dtype = config, dtype
        hidden = config.hidden_size
        self.embed = take("embed_tokens.weight", (config.vocab_size, hidden))
        self.layers = [DecoderLayer(config, i, take) for i in range(config.num_hidden_layers)]
        self.norm = take("norm.weight", (hidden,))
        tied = config.tie_word_embeddings
        self.lm_head = self.embed if tied else take("lm_head.weight", (config.vocab_size, hidden))
        self.max_positions = max_positions
        frequencies, scaling = rope_frequencies(config)
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies.float())
        self.rope = (angles.cos() * scaling, angles.sin() * scaling)

    @classmethod
    def from_directory(
        cls, path: Path, *, dtype: torch.dtype | None = None, max_positions: int | None = None
    ) -> Decoder:
        """`dtype` None: the checkpoint's own, as far as this machine computes in it (`auto_dtype`)."""
        config = ModelConfig.from_directory(path)
        return cls(
            config,
            load_weights(path),
            dtype=dtype or auto_dtype(config),
            max_positions=max_positions or config.max_position_embeddings,
        )

    @property
    def weight_dtype(self) -> torch.dtype:
        """The format of the matrices; another than `dtype` where products widen them on the way."""
        return self.layers[0].down.weight.dtype

    @cached_property
    def cost(self) -> ModelCost:
        return ModelCost.of(self.config, self.weight_dtype.itemsize, self.dtype.itemsize)

    def embedded(self, token_ids: Tensor) -> Tensor:
        """token_ids [rows] -> [rows, hidden]. Differentiable."""
        return F.embedding(token_ids, self.embed).to(self.dtype)

    def new_cache(self, blocks: int) -> KVCache:
        c = self.config
        return KVCache(c.num_hidden_layers, blocks, c.num_key_value_heads, c.head_dim, self.dtype)

    def forward(
        self,
        token_ids: Tensor,
        layout: PagedLayout,
        cache: KVCache,
        adapters: Sequence[AdapterRows] = (),
        keep: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """token_ids [rows] -> hidden states [rows, hidden] before the final norm; runs without gradients.

        `keep(layer, x)` is shown every layer's input, and the result as layer `num_hidden_layers`.
        """
        x = self.embedded(token_ids)
        for layer in self.layers:
            if keep is not None:
                keep(layer.index, x)
            loras = [LoraRows(a.start, a.end, a.layers[layer.index]) for a in adapters]
            x = layer.forward(x, layout, cache, self.rope, loras)
        if keep is not None:
            keep(len(self.layers), x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> [rows, vocab], in the model's number format."""
        return kernels.linear(kernels.rms_norm(hidden, self.norm, self.config.rms_norm_eps), self.lm_head)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that full training updates, by a short name ("layers.0.qkv.weight", ...)."""
        named = {"embed": self.embed, "norm": self.norm}
        if self.lm_head is not self.embed:
            named["lm_head"] = self.lm_head
        for layer in self.layers:
            named |= {f"layers.{layer.index}.{name}": tensor for name, tensor in layer.tensors().items()}
        return named

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under Hugging Face's names, as `model.safetensors` holds them."""
        named = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if self.lm_head is not self.embed:
            named["lm_head.weight"] = self.lm_head
        for layer in self.layers:
            prefix = f"model.layers.{layer.index}"
            named[f"{prefix}.input_layernorm.weight"] = layer.input_norm
            named[f"{prefix}.post_attention_layernorm.weight"] = layer.post_norm
            if layer.q_norm is not None and layer.k_norm is not None:
                named[f"{prefix}.self_attn.q_norm.weight"] = layer.q_norm
                named[f"{prefix}.self_attn.k_norm.weight"] = layer.k_norm
            for block, modules in (("self_attn", (layer.qkv, layer.o)), ("mlp", (layer.gate_up, layer.down))):
                for module in modules:
                    for name, first, last in module.parts:
                        named[f"{prefix}.{block}.{name}.weight"] = module.weight[first:last]
                        if module.bias is not None:
                            named[f"{prefix}.{block}.{name}.bias"] = module.bias[first:last]
        return {name: tensor.detach().contiguous() for name, tensor in named.items()}
