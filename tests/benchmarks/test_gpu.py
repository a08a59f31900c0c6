"""The benchmark of the GPU kernels: its cases are right at a small shape in Triton's interpreter; its table is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import check, wrong_ones

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN in what is masked
def test_every_case_is_right_at_a_small_shape():
    pytest.importorskip("triton", reason="Triton is not installed, so no GPU kernel is tested")
    from benchmarks.gpu_cases import Shape, all_cases
    from tests.kernels.gpu import interpreter

    interpreter.put_right()
    torch.manual_seed(0)
    small = Shape(64, 4, 2, 16, 128, 300, streams=(1, 3), contexts=(20, 150), prompt=30, cached=1)
    rows = []
    with torch.inference_mode():
        for case in all_cases(small):
            assert case.copies == 1 and case.bytes > 0
            case.launch(0)
            rows.append({"kernel": case.name} | check(case))
    assert len({row["kernel"] for row in rows}) == len(rows) > 30
    assert not wrong_ones(rows), [row for row in rows if row["kernel"] in wrong_ones(rows)]


def test_what_is_wrong_is_named():
    row = {"kernel": "norm", "error": 0.001, "limit": 0.01, "rows alone": True}
    rows = [row, row | {"kernel": "a", "error": float("nan")}, row | {"kernel": "b", "rows alone": False}]
    assert wrong_ones([*rows, row | {"kernel": "c", "rows alone": None}]) == ["a", "b"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "benchmarks.gpu needs a GPU that PyTorch can use (CUDA or ROCm), and there is none here.\n"
