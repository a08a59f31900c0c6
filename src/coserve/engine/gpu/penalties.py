"""Whose penalties and biases lie in which slot of the GPU's memory, and that its counts are the requests' own."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from coserve.engine.active import ActiveRequest
from coserve.kernels.gpu.penalties import NONE, PROMPT, Penalties


@dataclass
class _Holder:
    """Who has a slot, and how many of its tokens the GPU has counted there; -1: it has yet to be filled."""

    request: ActiveRequest
    slot: int
    counted: int = -1


class PenaltySlots:
    """Requests that need one keep their slot until somebody else needs it, wherever they decode.

    A step counts the tokens that it chooses. It may have counted one that came to nothing, or not the one that the CPU
    chose instead: then the numbers differ as soon as no step is on its way, and the slot is filled anew. The two never
    cancel out: the CPU chooses only where no step is ahead, and then `hold` looks before the next one.
    """

    def __init__(self, slots: int, vocab: int, device: torch.device):
        self._slots, self._vocab, self._device = slots, vocab, device
        self.forget()

    def forget(self) -> None:
        """Nobody has a slot, and none takes memory: it is allocated for the first one who needs it."""
        self.table: Penalties | None = None
        self._free = list(range(self._slots))
        self._holders: dict[int, _Holder] = {}  # by the request's identity; who was needed last comes last

    def hold(self, requests: Iterable[ActiveRequest]) -> None:
        """Have right slots for those of the next step who need one: not more than there are. All steps have landed."""
        needed = {id(request): request for request in requests if request.params.shapes_logits}
        if needed and self.table is None:
            self.table = Penalties.empty(self._slots, self._vocab, self._device)
        for key, request in needed.items():
            holder = self._holders.pop(key, None) or _Holder(request, self._free_one(needed))
            self._holders[key] = holder
            if holder.counted != request.completion_tokens:
                self._fill(holder)

    def slot(self, request: ActiveRequest) -> int:
        holder = self._holders.get(id(request))
        return NONE if holder is None else holder.slot

    def landed(self, request: ActiveRequest) -> None:
        """A step has chosen a token for it, and counted it."""
        if (holder := self._holders.get(id(request))) is not None:
            holder.counted += 1

    def _free_one(self, needed: Container[int]) -> int:
        if self._free:
            return self._free.pop()
        return self._holders.pop(next(key for key in self._holders if key not in needed)).slot

    def _fill(self, holder: _Holder) -> None:
        """From what the request was asked and has generated."""
        request, slot, table = holder.request, holder.slot, self.table
        assert table is not None
        p, counts = request.params, request.output_counts
        seen, biases = np.zeros(self._vocab, dtype=np.int32), np.zeros(self._vocab, dtype=np.float32)
        seen[np.array(request.request.prompt, dtype=np.int64)] = PROMPT
        seen[np.array(list(counts), dtype=np.int64)] += np.array(list(counts.values()), dtype=np.int32)
        biases[np.array(list(p.logit_bias), dtype=np.int64)] = list(p.logit_bias.values())
        table.seen[slot] = torch.from_numpy(seen)
        table.biases[slot] = torch.from_numpy(biases)
        table.strengths[slot] = torch.tensor([p.repetition_penalty, p.presence_penalty, p.frequency_penalty])
        holder.counted = request.completion_tokens
