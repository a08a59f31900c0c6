"""Higher priorities first: seats, blocks, chunks; who gives way loses as little as can be, and nobody starves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.engine import Request, SamplingParams
from coserve.engine.blocks import blocks_for
from coserve.errors import InvalidRequest
from tests.engine.scheduling import active, new_scheduler, settle, step


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight", 0.0), ("weight", float("inf")), ("ttft_goal", 0.0), ("itl_goal", -1.0), ("queue_seconds", 0.0)],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(InvalidRequest, match=f"^{field} is ") as caught:
        Request((1,), SamplingParams(), "m", **{field: value})
    assert caught.value.param == field


def test_the_higher_priority_is_admitted_first_whoever_came_earlier():
    scheduler = new_scheduler(max_num_seqs=1)
    low, high = active(4, arrived=0.0, max_tokens=1), active(4, arrived=1.0, max_tokens=1, priority=10)
    scheduler.add(low)
    scheduler.add(high)
    assert [step(scheduler, now=2.0).chosen[0][0] for _ in range(2)] == [high, low]


def test_chunks_of_a_higher_prompt_go_before_those_of_a_lower_one():
    scheduler = new_scheduler()
    low, high = active(60), active(40, arrived=1.0, priority=1)
    scheduler.add(low)
    settle(scheduler.plan(16, 0.0))
    scheduler.add(high)
    plan = scheduler.plan(16, 1.0)
    assert [(r, len(s.tokens)) for r, s in plan.chosen] == [(high, 16)] and plan.lower == [low]


def test_a_missing_seat_parks_the_lowest_and_latest_which_goes_on_where_it_was():
    scheduler = new_scheduler(max_num_seqs=3)
    middle = active(20, arrived=0.0, priority=1)
    early, late = active(20, arrived=1.0), active(20, arrived=2.0)
    for request in (middle, early, late):
        scheduler.add(request)
    step(scheduler, now=3.0)
    high = active(20, arrived=3.0, priority=10, max_tokens=2)
    scheduler.add(high)
    step(scheduler, now=3.0)
    assert scheduler.parked == [late] and set(scheduler.running) == {middle, early, high}
    kept = late.computed
    assert kept >= 20 and len(late.blocks) == blocks_for(len(late.tokens))
    step(scheduler, now=4.0)
    segment = next(s for r, s in step(scheduler, now=5.0).chosen if r is late)
    assert (segment.kind, segment.start) == ("decode", kept) and not scheduler.parked
    assert scheduler.preemptions == 0


def test_nobody_gives_way_in_vain():
    scheduler = new_scheduler(blocks=6, max_num_seqs=2)
    peer, low = active(60, priority=5), active(16)
    for request in (peer, low):
        scheduler.add(request)
    step(scheduler)
    scheduler.add(active(40, priority=5))
    step(scheduler)
    assert set(scheduler.running) == {peer, low}, "the blocks of the low one would not be enough"


def test_missing_blocks_are_taken_from_the_parked_first_and_what_is_lost_is_computed_again():
    scheduler = new_scheduler(blocks=8, max_num_seqs=2)
    first, second = active(30, arrived=0.0, max_tokens=20), active(30, arrived=1.0, max_tokens=20)
    for request in (first, second):
        scheduler.add(request)
    step(scheduler, now=1.0)
    high, higher = active(40, arrived=2.0, priority=1, max_tokens=3), active(40, arrived=3.0, priority=2, max_tokens=3)
    scheduler.add(high)
    step(scheduler, now=2.0)
    assert scheduler.parked == [second] and second.computed
    scheduler.add(higher)
    step(scheduler, now=3.0)
    assert set(scheduler.running) == {high, higher}
    assert second.computed == 0 and not second.blocks and scheduler.preemptions == 1
    assert scheduler.parked == [first] and first.computed
    for number in range(100):
        step(scheduler, now=4.0 + number)
    assert first.completion_tokens == second.completion_tokens == 20 and scheduler.pool.used == 0


def test_growing_takes_the_blocks_of_the_lowest():
    scheduler = new_scheduler(blocks=4, max_num_seqs=4)
    high, low = active(31, priority=1), active(20)
    for request in (high, low):
        scheduler.add(request)
    for number in range(3):
        step(scheduler, now=number)
    assert scheduler.running == [high] and list(scheduler.waiting) == [low] and not low.blocks


def test_a_request_that_was_not_admitted_in_time_expires_and_one_that_was_does_not():
    scheduler = new_scheduler(max_num_seqs=1)
    admitted, waits = active(4, queue_seconds=5.0), active(4, queue_seconds=5.0, arrived=0.5)
    for request in (admitted, waits):
        scheduler.add(request)
    step(scheduler, now=1.0)
    scheduler.add(active(4, priority=1, arrived=2.0))
    step(scheduler, now=2.0)
    assert scheduler.parked == [admitted]
    assert scheduler.waiting.expired(5.4) == []
    assert scheduler.waiting.expired(5.6) == [waits]


def test_a_priority_that_is_passed_over_rises_one_request_at_a_time():
    """Short high requests without end: a low one gets its turn when it has waited for the difference."""
    scheduler = new_scheduler(max_num_seqs=1, aging_seconds=10.0)
    lows = [active(4, max_tokens=1) for _ in range(3)]
    for low in lows:
        scheduler.add(low)
    turns = []
    for now in range(100):
        while sum(r.priority for r in scheduler.waiting) < 4:
            scheduler.add(active(4, arrived=float(now), priority=2, max_tokens=1))
        if step(scheduler, float(now)).chosen[0][0] in lows:
            turns.append(now)
    assert len(turns) == 3 and turns[0] == 20
    assert all(20 <= later - earlier <= 22 for earlier, later in pairwise(turns))


def test_one_that_has_risen_keeps_its_seat():
    scheduler = new_scheduler(max_num_seqs=1, aging_seconds=10.0)
    high = active(4, priority=1, max_tokens=30)
    low = active(4, max_tokens=20)
    for request in (high, low):
        scheduler.add(request)
    for now in range(31):
        step(scheduler, float(now))
    scheduler.add(active(4, priority=1, arrived=31.0))
    step(scheduler, 31.0)
    assert scheduler.running == [low] and low.rank >= 1
    scheduler.add(active(4, priority=9, arrived=32.0))
    step(scheduler, 32.0)
    assert scheduler.parked == [low], "only to a priority above its rank"


def test_age_drives_nobody_out_and_keeps_no_higher_priority_from_doing_so():
    scheduler = new_scheduler(max_num_seqs=2, aging_seconds=1.0)
    for priority in (0, 0):
        scheduler.add(active(4, priority=priority, max_tokens=1000))
    step(scheduler)
    aged = active(4)
    scheduler.add(aged)
    step(scheduler, 100.0)
    assert aged not in scheduler.running, "its rank is a hundred"
    high = active(4, arrived=100.0, priority=10)
    scheduler.add(high)
    step(scheduler, 100.0)
    assert high in scheduler.running and aged not in scheduler.running


def test_who_passes_one_that_has_risen_takes_none_of_the_blocks_it_waits_for():
    scheduler = new_scheduler(blocks=10, max_num_seqs=4, aging_seconds=1.0)
    scheduler.add(active(60, max_tokens=1000))  # 4 blocks
    step(scheduler)
    aged = active(110, max_tokens=4)  # 7 blocks, of which 6 are free
    scheduler.add(aged)
    free = scheduler.pool.free
    high = active(70, arrived=50.0, priority=5, max_tokens=4)
    scheduler.add(high)
    step(scheduler, 50.0)
    assert high not in scheduler.running and scheduler.pool.free == free
    small = active(20, arrived=50.0, priority=6, max_tokens=40)
    scheduler.add(small)
    step(scheduler, 50.0)
    assert scheduler.running == [small, aged], "the blocks of the one that was driven out are enough for both"


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 60),  # prompt
        st.integers(1, 20),  # output
        st.integers(0, 3),  # priority
        st.sampled_from("abc"),
        st.integers(0, 60),  # arrival, in steps
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=50, deadline=None)
@given(REQUESTS, st.integers(4, 40), st.integers(5, 24), st.integers(1, 4), st.sampled_from([0.5, 3.0, 30.0, 1e9]))
def test_every_request_ends_under_any_mix(mix, max_tokens, blocks, max_num_seqs, aging):
    scheduler = new_scheduler(blocks=blocks, max_num_seqs=max_num_seqs, aging_seconds=aging)
    requests = sorted(
        (
            active(prompt, arrived=float(arrived), max_tokens=output, priority=priority, share=share)
            for prompt, output, priority, share, arrived in mix
            if blocks_for(prompt + output) <= blocks
        ),
        key=lambda r: r.arrived,
    )
    coming = list(requests)
    for number in range(3000):
        while coming and coming[0].arrived <= number:
            scheduler.add(coming.pop(0))
        if scheduler.has_work:
            plan = step(scheduler, float(number), max_tokens)
            assert plan.chosen, "there is always something to do"
            assert len(scheduler.running) <= max_num_seqs
        held = [b for r in requests for b in r.blocks]
        assert len(held) == len(set(held)) == scheduler.pool.used
        if not coming and not scheduler.has_work:
            break
    assert all(r.completion_tokens == r.max_tokens for r in requests)
    assert scheduler.pool.used == 0 and not scheduler.parked


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.sampled_from([2.0, 5.0]))
def test_the_lowest_is_not_starved_by_an_endless_flood(seats, priority, aging):
    scheduler = new_scheduler(blocks=40, max_num_seqs=seats, aging_seconds=aging)
    low = active(20, max_tokens=5, share="low")
    scheduler.add(low)
    for now in range(int(priority * aging) + 60):
        while len(scheduler.waiting) < 4:
            scheduler.add(active(8, arrived=float(now), max_tokens=6, priority=priority, share="flood"))
        step(scheduler, float(now))
        if low.completion_tokens == low.max_tokens:
            break
    assert low.completion_tokens == low.max_tokens


def test_deadlines_of_requests_that_ended_are_not_kept_for_long():
    scheduler = new_scheduler(max_num_seqs=1)
    stays = active(4, queue_seconds=50.0)
    scheduler.add(stays)
    for now in range(1000):
        ended = active(4, queue_seconds=1e6, arrived=0.01 * now)
        scheduler.add(ended)
        scheduler.release(ended)
        assert len(scheduler.waiting._deadlines) < 100
    assert scheduler.waiting.expired(60.0) == [stays]
