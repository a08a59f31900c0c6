"""The kernels compile for NVIDIA's and AMD's GPUs, though there is none: what the interpreter takes may not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coserve.kernels import gpu

SHARED = {"cuda": 227 << 10, "hip": 64 << 10}  # bytes of shared memory: H100's, MI300's
FEW = 64  # bytes of a thread that may go to memory where registers are short


@pytest.mark.parametrize("target", ["cuda", "hip"])
def test_every_kernel_compiles_and_fits(target, tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kernels.gpu.compiled", target]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    launches = [json.loads(line) for line in done.stdout.splitlines()]
    sources = "".join(path.read_text() for path in Path(gpu.__file__).parent.glob("*.py"))
    assert {launch["kernel"] for launch in launches} == set(re.findall(r"^ +(_\w+)\[\(", sources, re.M))
    for launch in launches:
        assert launch["shared"] <= SHARED[target] and launch.get("spilled", 0) <= FEW, launch
