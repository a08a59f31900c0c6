"""The device that a model runs on: the CPU, or a GPU of any make that PyTorch knows (it calls them all "cuda")."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec

import torch

from coserve.errors import InvalidRequest

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
DEVICES = "auto, cpu or cuda (cuda:1 is the second GPU)"


def choose_device(name: str | torch.device) -> torch.device:
    """What `--device` means: "auto" is the first GPU if PyTorch can use one and Triton is installed, else the CPU.

    Raises `InvalidRequest` for a name that is none, for a GPU that is not there, and for one without Triton.
    """
    name = str(name)
    if name == "auto":
        return _best_there_is()
    if not is_device(name):
        raise InvalidRequest(f"device is {name!r}; it must be {DEVICES}.", param="device")
    if name == "cpu":
        return CPU
    index = int(name.removeprefix("cuda").removeprefix(":") or 0)
    if index >= torch.cuda.device_count():
        raise InvalidRequest(f"device is {name!r}, which is not there: PyTorch finds {_found()}.", param="device")
    if not _has_triton():
        raise InvalidRequest("on a GPU coserve needs Triton: pip install 'coserve[gpu]'", param="device")
    return torch.device("cuda", index)


def _best_there_is() -> torch.device:
    if not torch.cuda.is_available():
        return CPU
    if not _has_triton():
        log.warning("there is a GPU, but no Triton to use it with: running on the CPU. pip install 'coserve[gpu]'")
        return CPU
    return torch.device("cuda", 0)


def is_device(name: str) -> bool:
    """Whether it is the name of a device, there or not."""
    return bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", name))


def is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def make_current(device: torch.device) -> None:
    """For this thread: Triton launches its kernels on the thread's own GPU."""
    if is_gpu(device):
        torch.cuda.set_device(device)


def _has_triton() -> bool:
    return find_spec("triton") is not None


def _found() -> str:
    gpus = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if gpus:
        return f"{', '.join(gpus)} and cpu"
    built = torch.version.cuda or torch.version.hip
    return "only cpu" if built else "only cpu, since it was built for neither CUDA nor ROCm"
