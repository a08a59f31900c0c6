"""The last of several programs to arrive sums up what all have left in memory, so that no second kernel has to."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBER = 1 << 16
_GRAPHS = -1

_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, number: int) -> Tensor:
    """At least so many zeros int32 for `last_to_arrive`, the same ones at each call: launches follow one another.

    Each stream has its own; all graphs of a device share theirs, so that no two may run at once. Raises `RuntimeError`
    where a graph is captured before any such kernel ran: what a graph allocates is its own.
    """
    if number > _NUMBER:
        raise ValueError(f"{number} results of several programs each; there are counters for {_NUMBER}")
    stream = _stream(device)
    if (device, stream) not in _counters:
        if stream == _GRAPHS:
            raise RuntimeError("run the kernels once before a graph of them is captured: they need their counters")
        for key in (stream, _GRAPHS):
            _counters.setdefault((device, key), torch.zeros(_NUMBER, dtype=torch.int32, device=device))
    return _counters[device, stream]


def _stream(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return _GRAPHS if torch.cuda.is_current_stream_capturing() else torch.cuda.current_stream(device).cuda_stream


@triton.jit
def last_to_arrive(counter, number):
    """Whether this program is the last of so many. If so, it sees all that the others wrote before they came.

    The counter is zero again afterwards.
    """
    tl.debug_barrier()  # all threads of this program have written
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == number - 1
    if last:
        tl.store(counter, 0)
    return last
