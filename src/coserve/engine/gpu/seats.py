"""Which row of the batch that decodes on the GPU is whose, and what the GPU has yet to be told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from coserve.engine.active import ActiveRequest
from coserve.engine.gpu.adapters import AdapterSlots
from coserve.engine.gpu.card import Card
from coserve.engine.gpu.penalties import PenaltySlots
from coserve.engine.plan import Plan
from coserve.kernels import BLOCK_SIZE
from coserve.kernels.gpu import decode
from coserve.kernels.gpu.decode import EACH_STEP, IDLE, SAME, DecodeRows

_STAGED = 4  # steps whose inputs may still be on their way: two are in flight at most


@dataclass
class _Seat:
    """A row's holder, and how much of its block table the GPU has."""

    request: ActiveRequest
    drops: int
    blocks: int = 0

    @property
    def valid(self) -> bool:
        """Whether the blocks that the GPU knows are still the request's."""
        return self.drops == self.request.drops


class Seats:
    def __init__(self, card: Card, rows: DecodeRows, adapters: AdapterSlots, penalties: PenaltySlots):
        self._rows, self._adapters, self._penalties = rows, adapters, penalties
        capacity = rows.tables.shape[0]
        self._by_row: list[_Seat | None] = [None] * capacity
        self._row_of: dict[int, int] = {}  # by the request's identity
        self._ints = np.zeros((rows.inputs.shape[0], capacity), dtype=np.int32)
        self._floats = self._ints.view(np.float32)
        self._staged = [card.host(*rows.inputs.shape, dtype=torch.int32) for _ in range(_STAGED)]
        self._step = 0

    def seat(self, plan: Plan) -> list[int]:
        """Rows for all who decode, the first ones; tells the GPU all about them. The last step has landed."""
        count = len(plan.chosen)
        self._leave_out({id(request) for request, _ in plan.chosen}, count)
        free = iter([row for row in range(count) if self._by_row[row] is None])
        ints, floats = self._ints, self._floats
        ints[decode.GROWN] = IDLE
        rows = []
        for request, segment in plan.chosen:
            row = self._row_of.get(id(request))
            if row is None:
                row = next(free)
                self._sit_down(request, row)
            ints[decode.GROWN, row] = self._grown(row, segment.start)
            ints[decode.TOKEN, row], ints[decode.POSITION, row] = request.tokens[-1], segment.start
            ints[decode.ADAPTER, row] = self._adapters.slot(segment.adapter)
            ints[decode.PENALTIES, row] = self._penalties.slot(request)
            if not request.params.greedy:
                floats[decode.UNIFORM, row] = request.draw(request.completion_tokens)
            rows.append(row)
        self._tell(ints.shape[0])
        return rows

    def go_on(self, plan: Plan) -> list[int]:
        """Rows of those who decode on, whose last tokens only the GPU knows as yet."""
        ints, floats = self._ints, self._floats
        # The row of one that stays behind is idle for a step, which spoils its block table.
        self._leave_out({id(request) for request, _ in plan.chosen}, len(self._by_row))
        ints[decode.GROWN] = IDLE
        rows = [self._row_of[id(request)] for request, _ in plan.chosen]
        for row, (request, segment) in zip(rows, plan.chosen, strict=True):
            ints[decode.GROWN, row] = self._grown(row, segment.start)
            if not request.params.greedy:
                floats[decode.UNIFORM, row] = request.draw(request.completion_tokens + 1)
        self._tell(EACH_STEP)
        return rows

    def stand_up(self) -> None:
        """Nobody has a row: the GPU's block tables are not theirs any more."""
        self._leave_out(set(), 0)

    def _leave_out(self, wanted: set[int], count: int) -> None:
        """Free the rows of those who are not wanted, from row `count` on, or whose blocks are others by now."""
        for row, seat in enumerate(self._by_row):
            if seat is not None and not (row < count and id(seat.request) in wanted and seat.valid):
                del self._row_of[id(seat.request)]
                self._by_row[row] = None

    def _sit_down(self, request: ActiveRequest, row: int) -> None:
        self._by_row[row] = _Seat(request, request.drops)
        self._row_of[id(request)] = row
        p = request.params
        self._ints[decode.TOP_K, row] = max(0, p.top_k)
        self._floats[decode.TEMPERATURE, row], self._floats[decode.TOP_P, row] = p.temperature, p.top_p
        self._floats[decode.MIN_P, row] = p.min_p

    def _grown(self, row: int, position: int) -> int:
        """The block of its next token, if the GPU has all before it and not this one; all others are told here."""
        seat = self._by_row[row]
        assert seat is not None
        blocks, known, place = seat.request.blocks, seat.blocks, position // BLOCK_SIZE
        seat.blocks = len(blocks)
        if len(blocks) == known:
            return SAME
        if known == place == len(blocks) - 1:
            return blocks[place]
        # Not only those up to `place`: one may have its next block already, of a step ahead whose token did not count.
        self._rows.tables[row, known : len(blocks)] = torch.tensor(blocks[known:], dtype=torch.int32)
        return SAME

    def _tell(self, inputs: int) -> None:
        """Copy the first inputs of all rows, from memory that is not written to before the copy has been made."""
        staged = self._staged[self._step % _STAGED]
        self._step += 1
        staged.numpy()[:inputs] = self._ints[:inputs]
        self._rows.inputs[:inputs].copy_(staged[:inputs], non_blocking=True)
