"""The operations that a decoder is made of, each with a PyTorch reference and, where it pays, a CPU kernel.

`linear` (matrix products, and LoRA on top of them), `paged` (the KV cache's layout), `ops` (norms, RoPE with the KV
write, paged attention: the native library if it is there, else `reference`; on a GPU `gpu`). No models, no scheduling
in here.
"""

from coserve.kernels.linear import LoraLayer, LoraRows, Loras, LoraWeights, StackedLora, linear, lora_linear
from coserve.kernels.ops import gated_linear, paged_attention, rms_norm, rope_and_attend, rope_and_store, silu_and_mul
from coserve.kernels.paged import BLOCK_SIZE, KVCache, PagedLayout

__all__ = [
    "BLOCK_SIZE",
    "KVCache",
    "LoraLayer",
    "LoraRows",
    "LoraWeights",
    "Loras",
    "PagedLayout",
    "StackedLora",
    "gated_linear",
    "linear",
    "lora_linear",
    "paged_attention",
    "rms_norm",
    "rope_and_attend",
    "rope_and_store",
    "silu_and_mul",
]
