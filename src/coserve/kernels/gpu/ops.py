"""What `kernels.ops`, `differentiable` and `linear` call for tensors on a GPU, under their names."""

from coserve.kernels.gpu.attention import paged_attention, rope_and_attend
from coserve.kernels.gpu.dropout import dropout
from coserve.kernels.gpu.products import dequantize, gated_product, product
from coserve.kernels.gpu.rope import rope_and_store, rotate, rotate_gradient
from coserve.kernels.gpu.rows import rms_norm, rms_norm_gradient, silu_and_mul, silu_and_mul_gradient

__all__ = [
    "dequantize",
    "dropout",
    "gated_product",
    "paged_attention",
    "product",
    "rms_norm",
    "rms_norm_gradient",
    "rope_and_attend",
    "rope_and_store",
    "rotate",
    "rotate_gradient",
    "silu_and_mul",
    "silu_and_mul_gradient",
]
