"""What the GPU at hand can do that not every GPU can, and how kernels are launched there."""

from __future__ import annotations

import functools
from typing import Any

import triton
import triton.language as tl
from triton.runtime import driver

# A kernel of a step is brought up while the one before it ends (programmatic dependent launch).
EARLY = True


@functools.cache
def backend() -> str:
    """ "cuda", "hip" or "interpreter"."""
    return "interpreter" if triton.knobs.runtime.interpret else driver.active.get_current_target().backend


@functools.cache
def capability() -> int:
    """NVIDIA's compute capability, 90 for Hopper's; 0 of others."""
    return int(driver.active.get_current_target().arch) if backend() == "cuda" else 0


def early() -> dict[str, Any]:
    """For the launch of a kernel that calls `await_earlier` before it writes or reads what the one before it wrote."""
    return {"EARLY": True, "launch_pdl": True} if EARLY and capability() >= 90 else {"EARLY": False}


def one_order() -> dict[str, Any]:
    """For a launch whose tiles' shape follows from the number of rows, so that sums keep their order.

    Of NVIDIA's instructions for tiles as high as these there is one kind for any number; of AMD's there are two.
    """
    return {"matrix_instr_nonkdim": 16} if backend() == "hip" else {}


@triton.jit
def await_earlier(EARLY: tl.constexpr):
    """Waits until all kernels before this one have ended.

    What was written two kernels earlier, or before, may be read already: a kernel comes up when those before the one
    before it have ended, since that one has waited for them before it let the next come.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next(EARLY: tl.constexpr):
    """Lets the next kernel be brought up, once all programs of this one have come here.

    To be called near the end: programs that wait take room from those that work, and those of several kernels at once
    made a step of Llama 3.1 8B on an H200 a tenth slower.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
