"""The number formats that a model runs in: of its arithmetic, and of its matrices."""

from __future__ import annotations

import torch

from coserve.kernels.device import CPU, is_gpu
from coserve.kernels.native import kernel, multiplies_bfloat16
from coserve.models.config import ModelConfig


def auto_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """What `--dtype auto` means: the checkpoint's own format, as far as the device computes in it.

    16-bit checkpoints run in bfloat16 where the processor multiplies in it. Elsewhere (a CPU without AVX-512's, say)
    float32 is several times faster, and costs no more memory: see `weight_dtype`. On a GPU all run in bfloat16: its
    matrix units are ten times as fast in it as in float32.
    """
    if config.torch_dtype in (None, "float32") and not is_gpu(device):
        return torch.float32
    return computing_dtype(device)


def computing_dtype(device: torch.device = CPU) -> torch.dtype:
    """What products with 16-bit weights are computed in on this device."""
    if is_gpu(device):
        return torch.bfloat16
    native_float32 = kernel("linear", torch.bfloat16) is not None
    return torch.float32 if native_float32 and not multiplies_bfloat16() else torch.bfloat16


def weight_dtype(dtype: torch.dtype, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The format that a matrix stays in, if the model computes in `dtype` and the checkpoint holds `stored`.

    Widening bfloat16 to float32 changes no value, so a CPU's kernels do it on the way; where there are none, loading
    does.
    """
    widened = dtype == torch.float32 and stored == torch.bfloat16 and not is_gpu(device)
    return stored if widened and kernel("linear", stored) is not None else dtype
