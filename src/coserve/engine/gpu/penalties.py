"""Whose penalties and biases lie in which slot of the GPU's memory, and that its counts are the requests' own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from coserve.engine.active import ActiveRequest
from coserve.kernels.gpu.penalties import NONE, PROMPT, Penalties


@dataclass
class _Holder:
    """A slot, and how many tokens of the request that has it the GPU has counted there; -1: it has yet to be filled."""

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
        # Who was needed last comes last. A request that has ended goes, and whatever it holds.
        self._holders: WeakKeyDictionary[ActiveRequest, _Holder] = WeakKeyDictionary()

    def hold(self, requests: Iterable[ActiveRequest]) -> None:
        """Have right slots for those of the next step who need one: not more than there are. All steps have landed."""
        needed = [request for request in requests if request.params.shapes_logits]
        if needed and self.table is None:
            self.table = Penalties.empty(self._slots, self._vocab, self._device)
        for request in needed:
            holder = self._holders.pop(request, None) or _Holder(self._free_one(needed))
            self._holders[request] = holder
            if holder.counted != request.completion_tokens:
                self._fill(holder, request)

    def slot(self, request: ActiveRequest) -> int:
        holder = self._holders.get(request)
        return NONE if holder is None else holder.slot

    def landed(self, request: ActiveRequest) -> None:
        """A step has chosen a token for it, and counted it."""
        if (holder := self._holders.get(request)) is not None:
            holder.counted += 1

    def _free_one(self, needed: Sequence[ActiveRequest]) -> int:
        """One that nobody has; else that of the one who is not needed now, and has not been for longest."""
        free = set(range(self._slots)).difference(holder.slot for holder in self._holders.values())
        if free:
            return min(free)
        here = set(map(id, needed))
        return self._holders.pop(next(r for r in self._holders if id(r) not in here)).slot

    def _fill(self, holder: _Holder, request: ActiveRequest) -> None:
        """From what the request was asked and has generated."""
        table, slot, p = self.table, holder.slot, request.params
        assert table is not None
        seen = dict.fromkeys(request.request.prompt, PROMPT)
        for token, count in request.output_counts.items():
            seen[token] = seen.get(token, 0) + count
        _scatter(table.seen[slot], seen)
        _scatter(table.biases[slot], p.logit_bias)
        table.strengths[slot] = torch.tensor([p.repetition_penalty, p.presence_penalty, p.frequency_penalty])
        holder.counted = request.completion_tokens


def _scatter(row: Tensor, values: Mapping[int, float]) -> None:
    """[vocab], zero but for these."""
    row.zero_()
    if values:
        places = torch.tensor(list(values), device=row.device)
        row[places] = torch.tensor(list(values.values()), dtype=row.dtype, device=row.device)
