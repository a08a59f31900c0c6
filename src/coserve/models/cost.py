"""What a model's work costs in bytes and FLOPs: the same counts for the engine's scheduler and for plans."""

from __future__ import annotations

from dataclasses import dataclass

from coserve.models.config import ModelConfig
from coserve.roofline import Work


@dataclass(frozen=True)
class ModelCost:
    """Counts of one model in its number formats."""

    layers: int
    layer_weights: int  # elements of a layer's matrices
    mlp_weights: int  # those of them that belong to the MLP and the output projection
    head_weights: int  # elements of the output matrix
    layer_bytes: float  # of a layer's matrices with their scales; the mean of the layers, which may differ
    mlp_bytes: float  # those of them that belong to the MLP and the output projection
    head_bytes: int
    attention_width: int  # heads * head_dim
    kv_width: int  # 2 * kv_heads * head_dim: elements kept for a token in a layer
    kv_bytes: int  # of an element of the KV cache

    @classmethod
    def of(
        cls, config: ModelConfig, *, layer_bytes: float, mlp_bytes: float, head_bytes: int, kv_bytes: int
    ) -> ModelCost:
        hidden = config.hidden_size
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        after = hidden * q + 3 * hidden * config.intermediate_size
        return cls(
            layers=config.num_hidden_layers,
            layer_weights=hidden * (q + 2 * kv) + after,
            mlp_weights=after,
            head_weights=hidden * config.vocab_size,
            layer_bytes=layer_bytes,
            mlp_bytes=mlp_bytes,
            head_bytes=head_bytes,
            attention_width=q,
            kv_width=2 * kv,
            kv_bytes=kv_bytes,
        )

    def layer(self, rows: int, pairs: float = 0, context: float = 0) -> Work:
        """One layer's forward: `pairs` of query and key in attention, `context` tokens of cache read."""
        moved = self.layer_bytes + self.kv_bytes * self.kv_width * context
        return Work(moved, 2 * rows * self.layer_weights + 4 * pairs * self.attention_width)

    def head(self, rows: int) -> Work:
        return Work(self.head_bytes if rows else 0, 2 * rows * self.head_weights)

    def forward(self, rows: int, pairs: float, context: float, logit_rows: int) -> Work:
        """A pass over a batch of `rows` tokens, of which `logit_rows` are sampled from."""
        one = self.layer(rows, pairs, context)
        return Work(self.layers * one.bytes, self.layers * one.flops) + self.head(logit_rows)
