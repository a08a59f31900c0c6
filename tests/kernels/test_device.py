"""`--device`: which one is meant, and what is said about one that cannot be."""

from __future__ import annotations

import pytest
import torch

from coserve.cli import settings
from coserve.errors import InvalidRequest
from coserve.kernels import device
from coserve.kernels.device import choose_device


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs, with or without Triton."""

    def make(gpus: int, *, triton: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU number {i}")
        monkeypatch.setattr(device, "find_spec", lambda name: object() if triton else None)

    return make


@pytest.mark.parametrize(("gpus", "triton", "wanted"), [(0, True, "cpu"), (2, True, "cuda:0"), (2, False, "cpu")])
def test_auto_is_a_gpu_that_can_be_used_else_the_cpu(machine, caplog, gpus, triton, wanted):
    machine(gpus, triton=triton)
    assert choose_device("auto") == torch.device(wanted)
    assert ("there is a GPU, but no Triton" in caplog.text) == (gpus > 0 and not triton)


def test_a_gpu_is_named_as_tensors_name_theirs(machine):
    machine(2)
    for name, wanted in (("cuda", "cuda:0"), ("cuda:1", "cuda:1"), (torch.device("cuda", 1), "cuda:1"), ("cpu", "cpu")):
        assert choose_device(name) == torch.device(wanted)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cpu:0", "mps", "cuda:1 "])
def test_an_unknown_device_is_told_which_there_could_be(machine, name):
    machine(1)
    with pytest.raises(InvalidRequest) as told:
        choose_device(name)
    assert told.value.message == f"device is {name!r}; it must be auto, cpu or cuda (cuda:1 is the second GPU)."
    assert told.value.param == "device"


def test_a_gpu_that_is_not_there_is_told_which_are(machine):
    machine(2)
    with pytest.raises(InvalidRequest, match=r"'cuda:2', which is not there: PyTorch finds cuda:0 \(GPU number 0\), c"):
        choose_device("cuda:2")
    machine(0)
    with pytest.raises(InvalidRequest, match="'cuda', which is not there: PyTorch finds only cpu"):
        choose_device("cuda")


def test_a_gpu_without_triton_is_told_how_to_get_it(machine):
    machine(1, triton=False)
    with pytest.raises(InvalidRequest, match=r"on a GPU coserve needs Triton: pip install 'coserve\[gpu\]'"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "cuda:", "cuda:x", "gpu", "mps", "CUDA", ""])
def test_the_command_line_knows_the_same_names_without_torch(name):
    assert settings._is_device(name) == device.is_device(name)
    assert settings.DEVICES == device.DEVICES
