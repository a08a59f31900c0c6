"""Counted instructions: the same twice, and fewer for a multiplication the more rows share a weight."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import kernel_instructions


@pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind is not installed (Debian: apt-get install valgrind)"
)
def test_instructions_are_counted(tmp_path):
    file = tmp_path / "counts.json"
    kernel_instructions.main(["--quick", "--weights", "int8", "--json", str(file)])
    one, four = json.loads(file.read_text())["rows"]
    again = kernel_instructions.instructions("valgrind", "int8", 1, 64, 256)
    assert one["instructions"] == pytest.approx(again, rel=0.01)  # Python takes some between the calls
    assert 0 < four["for_1000_multiplications"] < one["for_1000_multiplications"] < 3000
