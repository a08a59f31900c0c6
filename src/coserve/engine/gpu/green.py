"""A stream whose work keeps to some of a GPU's multiprocessors: one of a green context (CUDA 12.8).

Priorities are no protection for a decode step: a large product's programs hold the multiprocessors on which they have
begun, whatever waits. Confined to half of them, it leaves the other half to the step.

What is confined goes by the stream; the context need not be current. So autograd's own threads are confined as well.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch

log = logging.getLogger(__name__)

_MULTIPLE = 8  # in which a green context is given multiprocessors
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no work waits for the default stream

_contexts: list[Any] = []  # a stream ends with its context


def half_of(multiprocessors: int) -> int:
    return max(_MULTIPLE, multiprocessors // 2 // _MULTIPLE * _MULTIPLE)


@functools.cache
def confined_stream(device: torch.device, multiprocessors: int) -> torch.cuda.Stream | None:
    """A stream of the lowest priority on so many multiprocessors (0: half of them), the same one each time.

    None where PyTorch or the driver has no green contexts (AMD's have not); the log says it.
    """
    try:
        count = multiprocessors or half_of(torch.cuda.get_device_properties(device).multi_processor_count)
        context = _new_context(device, count)
        stream = _stream_of(context, device)
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError) as error:
        log.warning("slices beside steps are not confined to some of the multiprocessors: %s", error)
        return None
    _contexts.append(context)
    return stream


def _new_context(device: torch.device, multiprocessors: int) -> Any:
    from torch.cuda.green_contexts import GreenContext  # not in every PyTorch

    return GreenContext.create(num_sms=multiprocessors, device_id=device.index or 0)


def _stream_of(context: Any, device: torch.device) -> torch.cuda.Stream:
    """A stream made while the context is current. Not one of PyTorch's pool: those were made before."""
    with torch.cuda.stream(torch.cuda.current_stream(device)):  # which `pop_context` may not restore
        context.set_context()
        try:
            return torch.cuda.ExternalStream(_new_stream(), device)
        finally:
            context.pop_context()


def _new_stream() -> int:
    handle = ctypes.c_void_p()
    result = ctypes.CDLL("libcuda.so.1").cuStreamCreateWithPriority(ctypes.byref(handle), _NON_BLOCKING, 0)
    if result or handle.value is None:
        raise RuntimeError(f"the driver made no stream (error {result})")
    return handle.value
