"""What the GPU kernels' tests share: where they run, and how near float64 is near enough."""

from __future__ import annotations

import os

import torch

DEVICE = "cuda" if os.environ.get("TRITON_INTERPRET") == "0" else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def close(actual: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, tolerance: float | None = None) -> None:
    """Off by a part of the largest element at most."""
    error = (actual.cpu().double() - wanted.double()).abs().max().item()
    assert error <= (tolerance or TOLERANCE[dtype]) * (wanted.abs().max().item() + 1e-6), error
