"""Training: FLOPs, memory, chips until a deadline, and one cluster for both."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.chips import find_chip
from coserve.errors import InvalidRequest
from coserve.planner.layout import Layout
from coserve.planner.serving import Limits, Requests
from coserve.planner.serving_plan import Question, Refusal, plan_serving
from coserve.planner.shape import load_shape
from coserve.planner.training import WHOLE_RUN, Run, memory_parts, training_speed
from coserve.planner.training_plan import (
    SLACK_USED,
    TrainingPlan,
    TrainingQuestion,
    arithmetic_used,
    plan_shared,
    plan_training,
    training_on_chip,
)

LLAMA_8B, LLAMA_70B = load_shape("Llama-3.1-8B"), load_shape("Llama-3.1-70B")
H100 = find_chip("H100")
FULL = Run("full", batch=64)


def test_mfu_counts_six_flops_a_parameter() -> None:
    speed = training_speed(LLAMA_8B, H100, replace(FULL, sequence=128, zero=False), Layout(), 8)
    six = 6 * LLAMA_8B.active_parameters() * speed.tokens / H100.flops["bfloat16"]
    assert speed.mfu == pytest.approx(six, rel=0.02)
    assert 0.3 < speed.mfu < 0.8


def test_lora_skips_the_gradients_of_weights_and_recomputing_adds_a_pass() -> None:
    full, lora, again = (
        training_speed(LLAMA_70B, H100, run, Layout(tp=8), 8).parts["arithmetic"]
        for run in (FULL, Run("lora", batch=64), replace(FULL, recompute=True))
    )
    assert lora / full == pytest.approx(2 / 3, rel=0.05)
    assert again / full == pytest.approx(4 / 3, rel=0.02)


def test_a_pipeline_idles_less_with_more_microbatches() -> None:
    few, many = (
        training_speed(LLAMA_70B, H100, replace(FULL, batch=batch), Layout(tp=8, pp=4), 32) for batch in (4, 64)
    )
    assert few.tokens < many.tokens
    assert few.parts["pipeline"] / many.parts["pipeline"] == pytest.approx(16)


def test_full_training_keeps_sixteen_bytes_a_parameter() -> None:
    parts = memory_parts(LLAMA_8B, FULL, Layout(), 1)
    states = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert states == 16 * LLAMA_8B.parameters()
    spread = memory_parts(LLAMA_8B, FULL, Layout(), 8)
    assert spread["optimizer"] == parts["optimizer"] / 8 and spread["activations"] == parts["activations"]


def test_adapters_of_rank_16_are_as_many_as_peft_makes() -> None:
    """41,943,040 for all linear layers of Llama-3.1-8B, which peft prints."""
    from coserve.planner.training import adapter_parameters

    assert adapter_parameters(LLAMA_8B, 16) == 41_943_040


def test_recomputing_saves_memory_and_qlora_more() -> None:
    def total(run: Run) -> float:
        return sum(memory_parts(LLAMA_8B, run, Layout(), 1).values())

    assert total(replace(FULL, recompute=True)) < total(FULL)
    assert total(Run("qlora")) < total(Run("lora")) < total(FULL)


@settings(deadline=None, max_examples=25)
@given(st.floats(1e7, 1e11), st.floats(3600, 30 * 86400), st.sampled_from(["full", "lora"]))
def test_a_plan_fits_and_is_done_in_time(tokens: float, deadline: float, method) -> None:
    plan = training_on_chip(TrainingQuestion(LLAMA_8B, tokens, deadline, Run(method)), H100)
    if isinstance(plan, TrainingPlan):
        assert plan.seconds <= deadline
        assert sum(plan.memory.values()) <= plan.chip.capacity
        assert plan.cost == pytest.approx(plan.chips * 2.95 * plan.seconds / 3600)
        assert plan.seconds == pytest.approx(tokens / (plan.chips * plan.speed.tokens * WHOLE_RUN))


def test_chips_for_inference_do_not_train() -> None:
    question = TrainingQuestion(LLAMA_8B, 1e8, 86400, Run())
    plans, refusals = plan_training(question)
    why = {refusal.chip.name: refusal.why for refusal in refusals}
    assert "made for inference" in why["Groq LPU"] and "not modelled" in why["WSE-3"]
    assert {plan.chip.name for plan in plans}.isdisjoint(why)
    costs = [plan.cost for plan in plans if plan.cost is not None]
    assert costs == sorted(costs)


def test_an_impossible_deadline_is_refused() -> None:
    refusal = training_on_chip(TrainingQuestion(LLAMA_70B, 15e12, 3600, Run("full")), H100)
    assert isinstance(refusal, Refusal) and "too few or too small" in refusal.why


def test_one_cluster_uses_what_serving_leaves() -> None:
    chips = [H100, find_chip("H200")]
    answer = plan_serving(Question(LLAMA_70B, 20, Requests(1000, 300), Limits(0.5, 0.025)), chips)
    small, large = (
        plan_shared(answer, plan_training(TrainingQuestion(LLAMA_70B, tokens, 86400, Run("lora")), chips)[0])
        for tokens in (1e6, 2e9)
    )
    for shared in (*small, *large):
        assert shared.together is not None
        used = arithmetic_used(shared.serving)
        rate = shared.training.question.rate / (shared.training.speed.tokens * WHOLE_RUN)
        assert (shared.together - used * shared.serving.chips) * SLACK_USED >= rate
    assert all(shared.together == shared.serving.chips for shared in small)  # it fits into the slack
    assert all(shared.together > shared.serving.chips for shared in large)
    assert all(shared.saved_per_hour > 0 for shared in small)


def test_full_fine_tuning_cannot_share_the_weights() -> None:
    answer = plan_serving(Question(LLAMA_8B, 5, Requests(1000, 300)), [H100])
    trained, _ = plan_training(TrainingQuestion(LLAMA_8B, 1e7, 86400, Run("full")), [H100])
    (shared,) = plan_shared(answer, trained)
    assert shared.together is None and "changes the weights" in shared.why


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown method 'dpo'; known are full, lora, qlora"):
        Run("dpo")  # type: ignore[arg-type]
