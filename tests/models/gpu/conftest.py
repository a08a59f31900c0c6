"""Skips what only a GPU can show where there is none, and says so."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

collect_ignore_glob = []

if os.environ.get("TRITON_INTERPRET") != "0" or not torch.cuda.is_available():
    collect_ignore_glob.append("test_*.py")
    told = "no loading to a GPU is tested: that takes one, and TRITON_INTERPRET=0"
    warnings.warn(pytest.PytestWarning(told), stacklevel=1)
