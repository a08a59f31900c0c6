"""Skips the GPU kernels' tests where there is no Triton, and says so; puts its interpreter right where there is."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
import torch

collect_ignore_glob = []

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob.append("test_*.py")
    warnings.warn(
        pytest.PytestWarning("Triton is not installed, so no GPU kernel is tested: pip install triton"), stacklevel=1
    )
else:
    from tests.kernels.gpu import interpreter

    interpreter.put_right()


@pytest.fixture(autouse=True)
def interpreted():
    """The interpreter computes small things by the thousand, which threads only delay, and NaN among them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
    torch.set_num_threads(threads)
