"""The operations in Triton, for GPUs of any make that PyTorch and Triton know (CUDA, ROCm).

Triton is imported when a tensor on a GPU is first met, never before: `kernels_for`. Without a GPU everything runs in
Triton's interpreter, for tests. Nothing here is CUDA's alone, and no kernel counts on a warp's size.

Each kernel sums in an order that depends on a row's own data and shape, never on how many rows there are.
"""

from __future__ import annotations
