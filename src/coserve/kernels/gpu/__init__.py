"""The operations in Triton, for GPUs of any make that PyTorch and Triton know (CUDA, ROCm).

Triton is imported when a tensor on a GPU is first met, never before: `kernels_for`. Without a GPU everything runs in
Triton's interpreter, for tests. Nothing here is CUDA's alone, and no kernel counts on a warp's size.

Each kernel sums in an order that depends on a row's own data and shape, never on how many rows there are.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import Tensor


def kernels_for(tensor: Tensor) -> Any:
    """The kernels for a tensor on a GPU, `gpu.ops`; None for others.

    Raises `ImportError` where there is a GPU, and no Triton.
    """
    return _library() if on_gpu(tensor) else None


def on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda  # PyTorch's name for AMD's as well


@functools.cache
def _library() -> Any:
    try:
        return importlib.import_module("coserve.kernels.gpu.ops")
    except ModuleNotFoundError as error:
        raise ImportError("on a GPU coserve needs Triton: pip install 'coserve[gpu]'") from error
