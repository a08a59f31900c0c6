"""Memory in huge pages: what is in it, and what becomes of the file behind it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from coserve.kernels.memory import available_memory, beyond_caches, huge_copy, map_file


def test_a_mapped_file_may_be_written_to_and_stays_as_it_is(tmp_path):
    path, content = tmp_path / "file", bytes(range(256)) * 20000
    path.write_bytes(content)
    with path.open("rb") as file:
        mapped = map_file(file)  # outlives the file's descriptor
    path_now = path.rename(tmp_path / "renamed")
    assert bytes(mapped.numpy()) == content
    mapped[:10] = 7
    assert mapped[:10].tolist() == [7] * 10 and path_now.read_bytes() == content


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file, pytest.raises(ValueError, match="empty"):
        map_file(file)


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1000, 1001)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_a_copy_is_a_copy(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    copy = huge_copy(tensor)
    assert torch.equal(copy, tensor) and (copy.dtype, copy.shape) == (dtype, tensor.shape)
    copy += 1
    assert torch.equal(copy, tensor) == (not tensor.numel())


def test_memory_is_measured_beyond_the_caches():
    assert 96_000_000 <= beyond_caches() <= 1 << 30 and available_memory() > 0


def test_what_is_freed_is_kept():
    """Counted in pages that six allocations of a thread fault in, after some of the same size."""
    script = """
import resource, sys, threading, torch
from coserve.kernels.memory import keep_freed_memory

def allocate():
    for i in range(36):
        if i == 30:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(100 << 20, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    keep_freed_memory()
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""
    faults = {
        what: int(subprocess.run([sys.executable, "-c", script, what], capture_output=True, check=True).stdout)
        for what in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 2, faults  # what else a process allocates may come between
