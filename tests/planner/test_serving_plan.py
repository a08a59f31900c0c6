"""Plans: the fewest chips within the goals, the money, and plain words where there is none."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.chips import find_chip
from coserve.errors import InvalidRequest
from coserve.planner.economics import Prices, serving_cost
from coserve.planner.serving import Limits, Requests
from coserve.planner.serving_plan import Plan, Question, Refusal, plan_on_chip, plan_serving
from coserve.planner.shape import load_shape

LLAMA_70B, LLAMA_8B = load_shape("Llama-3.1-70B"), load_shape("Llama-3.1-8B")
GOALS = Limits(ttft=0.5, tpot=0.025)
QUESTION = Question(LLAMA_70B, 20, Requests(1000, 300), GOALS)
H100, H200 = find_chip("H100"), find_chip("H200")


def on(question: Question, name: str) -> Plan:
    plan = plan_on_chip(question, find_chip(name))
    assert isinstance(plan, Plan), plan
    return plan


def test_the_whole_catalogue_answers_in_a_second_cheapest_first() -> None:
    started = time.process_time()
    answer = plan_serving(QUESTION)
    assert time.process_time() - started < 5  # about one here; machines are shared
    costs = [plan.cost.per_hour for plan in answer.plans]
    priced = [cost for cost in costs if cost is not None]
    assert priced == sorted(priced) and costs[: len(priced)] == priced
    assert len(answer.plans) + len(answer.refusals) == 42
    assert all(refusal.why for refusal in answer.refusals)


@pytest.mark.parametrize("name", ["H100", "H200", "B200", "MI300X", "TPU v6e", "WSE-3", "Gaudi 3", "Trainium2"])
def test_a_plan_keeps_its_goals_and_its_load(name: str) -> None:
    plan = on(QUESTION, name)
    assert plan.tail.ttft <= GOALS.ttft * 1.05 and plan.tail.tpot <= GOALS.tpot * 1.05
    assert plan.most >= 20
    assert plan.serving.rate * plan.replicas == pytest.approx(20, rel=0.03)
    assert plan.chips == plan.replicas * plan.layout.chips
    assert min(plan.memory.values()) >= 0
    assert sum(plan.memory.values()) <= plan.chip.capacity
    assert 0 < plan.mbu < 1 and 0 < plan.mfu < 1


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 500), st.floats(1.5, 8))
def test_more_load_needs_no_fewer_chips_and_cost_scales_with_them(rate: float, times: float) -> None:
    few = plan_on_chip(replace(QUESTION, rate=rate), H200)
    many = plan_on_chip(replace(QUESTION, rate=rate * times), H200)
    assert isinstance(few, Plan) and isinstance(many, Plan)
    assert many.chips >= few.chips
    assert many.cost.per_hour == pytest.approx(many.chips * 3.5)


def test_a_peak_is_built_for_and_the_average_reported() -> None:
    plain, peaked = on(QUESTION, "H100"), on(replace(QUESTION, peak=2.5), "H100")
    assert peaked.chips >= 2 * plain.chips
    assert peaked.serving.running < plain.serving.running


def test_eight_bits_are_cheaper_than_sixteen_and_chosen() -> None:
    sixteen = on(replace(QUESTION, weights="bfloat16"), "H100")
    assert on(QUESTION, "H100").replica.weights == "float8"
    assert on(QUESTION, "H100").chips <= sixteen.chips


def test_prompts_on_chips_of_their_own_keep_tokens_even() -> None:
    together = on(QUESTION, "H100")
    apart = on(replace(QUESTION, requests=Requests(1000, 300, elsewhere=True)), "H100")
    assert apart.prompt_replicas >= 1
    assert apart.chips == (apart.replicas + apart.prompt_replicas) * apart.layout.chips
    assert apart.tail.itl < together.tail.itl


@pytest.mark.parametrize(
    ("question", "chip", "why"),
    [
        (QUESTION, "L4", r"a token takes at least .* ms .*the goal is 25 ms"),
        (replace(QUESTION, limits=Limits(ttft=0.01)), "H100", r"a first token takes at least .*the goal is 10 ms"),
        (replace(QUESTION, shape=load_shape("Llama-3.1-405B")), "Groq LPU", r"do not fit on the 576 chips"),
        (replace(QUESTION, requests=Requests(2_000_000, 300)), "H100", r"no room for the keys and values of 2,000,300"),
    ],
)
def test_a_chip_that_cannot_says_why(question: Question, chip: str, why: str) -> None:
    refusal = plan_on_chip(question, find_chip(chip))
    assert isinstance(refusal, Refusal), refusal
    assert re.search(why, refusal.why), refusal.why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": -1}, "rps must be above 0, not -1"),
        ({"rate": math.nan}, "rps must be above 0, not nan"),
        ({"requests": Requests(0, 10)}, "prompt must be above 0"),
        ({"requests": Requests(10, 0)}, "output must be above 0"),
        ({"requests": Requests(10, 10, cached=1.0)}, "prefix-hit must be at least 0 and below 1"),
        ({"limits": Limits(ttft=0)}, "ttft must be above 0"),
        ({"peak": 0.5}, "peak must be at least 1"),
        ({"weights": "float3"}, "unknown number format 'float3'"),
        ({"engine": "vlm"}, "unknown engine 'vlm'; known are"),
    ],
)
def test_wrong_questions_get_one_clear_line(change, message) -> None:
    with pytest.raises(InvalidRequest, match=message):
        replace(QUESTION, **change)


def test_costs_add_up_to_the_bill() -> None:
    cost = serving_cost(8, 2.5, 700, rate=4, prompt=1000, output=250, prompt_share=0.3, prices=Prices(0.5, 2.0))
    assert cost.per_hour == 20
    tokens_in, tokens_out = 4 * 1000 * 3600 / 1e6, 4 * 250 * 3600 / 1e6
    assert cost.per_million_input * tokens_in + cost.per_million_output * tokens_out == pytest.approx(20)
    revenue = 0.5 * tokens_in + 2.0 * tokens_out
    assert cost.margin == pytest.approx(1 - 20 / revenue)
    assert cost.break_even_rate == pytest.approx(4 * 20 / revenue)
    assert cost.kwh_per_million_output == pytest.approx(8 * 0.7 * 1.25 / tokens_out)
    free = serving_cost(8, None, 700, 4, 1000, 250, 0.3)
    assert free.per_hour is free.per_million_output is free.margin is None


def test_a_price_of_ones_own_counts() -> None:
    plan = plan_on_chip(QUESTION, H100.at_price(10.0))
    assert isinstance(plan, Plan)
    assert plan.cost.per_hour == 10.0 * plan.chips
    assert plan.price_source == "as given"


def test_ten_thousand_configurations_take_less_than_ten_seconds() -> None:
    from coserve.planner.layout import Layout
    from coserve.planner.replica import Replica
    from coserve.planner.serving import closed_loop

    started = time.process_time()
    for i in range(10_000):
        closed_loop(Replica(LLAMA_8B, H100, Layout(1 << i % 4)), Requests(1000, 300), 1 + i % 200)
    assert time.process_time() - started < 10
