"""Which tokens go into a step: everybody who decodes, then prompts in order, within the limits and the blocks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.engine.blocks import blocks_for
from tests.engine.scheduling import active, new_scheduler, settle


def test_decoding_requests_all_go_along_and_prompts_get_what_is_left():
    scheduler = new_scheduler()
    for _ in range(3):
        scheduler.add(active(4))
    settle(scheduler.plan(64, 0.0))
    scheduler.add(active(100))
    plan = scheduler.plan(19, 0.0)
    assert [(s.kind, len(s.tokens)) for _, s in plan.chosen] == [("decode", 1)] * 3 + [("prefill", 16)]
    settle(plan)
    assert len([r for r in scheduler.running if r.decoding]) == 3
    assert [len(s.tokens) for _, s in scheduler.plan(2, 0.0).chosen] == [1, 1, 1], (
        "a limit below their number stops nobody"
    )


def test_a_prompt_in_chunks_is_sampled_from_once_at_its_end():
    scheduler = new_scheduler()
    scheduler.add(active(40))
    asked = []
    for _ in range(3):
        plan = scheduler.plan(16, 0.0)
        asked += [segment.sample for _, segment in plan.chosen]
        settle(plan)
    assert asked == [False, False, True]


def test_requests_are_admitted_in_their_order_when_their_prompts_blocks_are_free():
    scheduler = new_scheduler(blocks=5)
    first, long, short = active(16), active(70), active(3)
    for request in (first, long, short):
        scheduler.add(request)
    settle(scheduler.plan(256, 0.0))
    assert scheduler.running == [first] and list(scheduler.waiting) == [long, short]
    scheduler.release(first)
    scheduler.plan(256, 0.0)
    assert scheduler.running == [long] and list(scheduler.waiting) == [short]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(8, 40),
    st.integers(5, 24),
    st.integers(1, 4),
)
def test_every_request_gets_its_tokens_and_every_block_comes_back(prompts, max_tokens, blocks, max_num_seqs):
    scheduler = new_scheduler(blocks=blocks, max_num_seqs=max_num_seqs)
    requests = [active(prompt) for prompt in prompts if blocks_for(prompt + 8) <= blocks]
    for request in requests:
        scheduler.add(request)
    for _ in range(2000):
        plan = scheduler.plan(max_tokens, 0.0)
        decodes = sum(segment.kind == "decode" for _, segment in plan.chosen)
        assert sum(len(segment.tokens) for _, segment in plan.chosen) <= max(max_tokens, decodes)
        settle(plan)
        for request in [r for r in scheduler.running if r.completion_tokens >= 8]:
            scheduler.release(request)
        if not scheduler.has_work:
            break
    assert all(request.completion_tokens >= 8 for request in requests)
    assert scheduler.pool.used == 0
