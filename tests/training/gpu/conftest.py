"""Training on a real GPU: `TRITON_INTERPRET=0 pytest tests/training/gpu`. Skipped, and said so, where there is none."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

NO_GPU = "there is no GPU (or TRITON_INTERPRET is not 0), so nothing is trained on one"
HAS_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0"

if not HAS_GPU:
    warnings.warn(pytest.PytestWarning(NO_GPU), stacklevel=1)


@pytest.fixture(autouse=True)
def gpu():
    if not HAS_GPU:
        pytest.skip(NO_GPU)
