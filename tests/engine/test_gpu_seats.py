"""Wherever the GPU thinks that a row stands, it writes to that request's own block: never to another one."""

from __future__ import annotations

import pytest

from coserve.engine import Request, SamplingParams
from coserve.engine.active import ActiveRequest
from coserve.engine.gpu.adapters import AdapterSlots
from coserve.engine.gpu.penalties import PenaltySlots
from coserve.engine.gpu.seats import Seats
from coserve.engine.plan import Plan
from coserve.engine.segment import UNKNOWN, Segment
from coserve.kernels import BLOCK_SIZE
from coserve.kernels.gpu import decode
from coserve.kernels.gpu.decode import DecodeRows
from coserve.kernels.gpu.penalties import NONE
from tests.engine.test_gpu_runner import StandIn
from tests.kernels.gpu.conftest import interpreted  # noqa: F401
from tests.kernels.gpu.oracle import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU stands in for a GPU: in the interpreter only")

SCRATCH = 99


@pytest.fixture
def rows(interpreted) -> DecodeRows:  # noqa: F811
    return DecodeRows.idle(4, 4, SCRATCH, "cpu")


@pytest.fixture
def seats(rows) -> Seats:
    return Seats(StandIn("cpu"), rows, AdapterSlots(None), PenaltySlots(4, 64, "cpu"))


def decoding(tokens: int, blocks: list[int], **asked) -> ActiveRequest:
    """With so many tokens, all but the last one computed."""
    params = SamplingParams(temperature=0, max_tokens=99, **asked)
    request = ActiveRequest(
        Request(tuple(range(tokens - 1)), params, "tiny"), None, None, 99, frozenset(), lambda output: None, 0.0
    )
    request.append(7)
    request.computed, request.blocks = tokens - 1, blocks
    return request


def plan_of(*requests: ActiveRequest, ahead: bool = False) -> Plan:
    plan = Plan()
    for request in requests:
        start = request.computed + ahead
        tokens = UNKNOWN if ahead else request.tokens[-1:]
        plan.chosen.append((request, Segment("decode", tokens, start, request.blocks, sample=True)))
    return plan


def slots(rows: DecodeRows) -> list[int]:
    """Where a step writes to; then its rows have moved on."""
    decode.begin(rows, 4)
    decode.end(rows, rows.token_ids)
    return rows.slots.tolist()


def slot(request: ActiveRequest, position: int) -> int:
    return request.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def tables(rows: DecodeRows, row: int, request: ActiveRequest) -> bool:
    return rows.tables[row, : len(request.blocks)].tolist() == request.blocks


def test_a_row_whose_block_for_the_step_ahead_was_taken_already_finds_its_own(rows, seats):
    """Its token could not be chosen, and meanwhile it has moved to another row."""
    ends, stays = decoding(5, [3]), decoding(BLOCK_SIZE, [5])
    seats.seat(plan_of(ends, stays))
    slots(rows)
    stays.blocks.append(8)
    seats.go_on(plan_of(ends, stays, ahead=True))
    assert slots(rows)[1] == 8 * BLOCK_SIZE
    (row,) = seats.seat(plan_of(stays))
    assert slots(rows)[row] == slot(stays, BLOCK_SIZE - 1)
    assert tables(rows, row, stays)


def test_a_row_that_rested_for_a_step_has_all_its_blocks(rows, seats):
    """It was to end, and had to choose its last token once more."""
    one, other = decoding(2 * BLOCK_SIZE, [3, 4]), decoding(9, [5])
    seats.seat(plan_of(one, other))
    slots(rows)
    seats.go_on(plan_of(other, ahead=True))
    assert slots(rows)[0] == SCRATCH * BLOCK_SIZE, "nobody decodes in that row"
    other.append(7)
    other.computed += 1
    row, _ = seats.seat(plan_of(one, other))
    assert slots(rows)[row] == slot(one, 2 * BLOCK_SIZE - 1)
    assert tables(rows, row, one)


def test_a_row_in_which_nobody_decodes_counts_in_nobody_s_slot(rows):
    """Its own may be somebody else's by the next step."""
    penalties = PenaltySlots(4, 64, "cpu")
    seats = Seats(StandIn("cpu"), rows, AdapterSlots(None), penalties)
    one, other = (decoding(9, [block], presence_penalty=1.0) for block in (3, 5))
    penalties.hold([one, other])
    seats.seat(plan_of(one, other))
    slots(rows)
    assert rows.penalties.tolist() == [penalties.slot(one), penalties.slot(other), NONE, NONE]
    seats.go_on(plan_of(other, ahead=True))
    slots(rows)
    assert rows.penalties.tolist() == [NONE, penalties.slot(other), NONE, NONE]
    seats.seat(plan_of(one))
    slots(rows)
    assert rows.penalties.tolist() == [penalties.slot(one), NONE, NONE, NONE]


def test_after_all_stood_up_everybody_is_told_everything_again(rows, seats):
    one = decoding(2 * BLOCK_SIZE, [3, 4])
    (row,) = seats.seat(plan_of(one))
    slots(rows)
    rows.rest()
    slots(rows)
    seats.stand_up()
    (row,) = seats.seat(plan_of(one))
    assert slots(rows)[row] == slot(one, 2 * BLOCK_SIZE - 1) and tables(rows, row, one)
