"""The answers: which chips, how many, at what cost, for a load within latency goals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from coserve.chips import ChipSpec, catalogue
from coserve.errors import InvalidRequest
from coserve.planner.candidates import layouts, weight_formats
from coserve.planner.constants import FITTED, Constants
from coserve.planner.economics import Cost, Prices, serving_cost
from coserve.planner.formats import number_format
from coserve.planner.layout import Layout
from coserve.planner.replica import NETWORK_BANDWIDTH, Bound, Replica
from coserve.planner.serving import (
    NO_LIMITS,
    Limits,
    Requests,
    Serving,
    Tail,
    best_throughput,
    closed_loop,
    open_loop,
    tail,
)
from coserve.planner.shape import ModelShape


@dataclass(frozen=True)
class Question:
    """What has to be served. Goals hold for 99 of 100 requests: TTFT, and a request's mean gap between tokens."""

    shape: ModelShape
    rate: float  # requests a second, on average
    requests: Requests
    limits: Limits = NO_LIMITS
    peak: float = 1.0  # the load to build for, over the average
    weights: str | None = None  # None: the cheapest of 16 bits and 8
    cache: str = "bfloat16"
    engine: str = "vllm"
    prices: Prices | None = None

    def __post_init__(self) -> None:
        _positive("rps", self.rate)
        _positive("prompt", self.requests.prompt)
        _positive("output", self.requests.output)
        _positive("ttft", self.limits.ttft)
        _positive("itl", self.limits.tpot)
        if self.peak < 1:
            raise InvalidRequest(f"peak must be at least 1 (the average load), not {self.peak:g}", param="peak")
        _share("prefix-hit", self.requests.cached)
        _share("acceptance", self.requests.acceptance)
        if self.weights is not None:
            number_format(self.weights)
        number_format(self.cache)
        engines = FITTED.first_token
        if self.engine not in engines:
            raise InvalidRequest(f"unknown engine {self.engine!r}; known are {', '.join(engines)}", param="engine")


@dataclass(frozen=True)
class Plan:
    """Chips of a kind that serve the load."""

    question: Question
    replica: Replica
    replicas: int
    prompt_replicas: int  # beside them, for prompts alone; 0 unless disaggregated
    serving: Serving  # of a replica, at its share of the average load
    tail: Tail
    most: float  # requests a second that these chips can take within the goals
    cost: Cost

    @property
    def chip(self) -> ChipSpec:
        return self.replica.chip

    @property
    def price_source(self) -> str | None:
        """What kind of price the cost is made of, and where it was read."""
        figure = self.chip.figures.get("price_per_hour")
        if figure is None:
            return None
        return f"{figure.source} ({figure.date})" if figure.date else figure.source

    @property
    def layout(self) -> Layout:
        return self.replica.layout

    @property
    def chips(self) -> int:
        return (self.replicas + self.prompt_replicas) * self.layout.chips

    @property
    def bound(self) -> Bound:
        """What sets the number of chips: memory where a replica is full, else what sets the pace of its steps."""
        full = self.replica.slots(self.question.requests.context) <= math.ceil(self.most / self.replicas * self.cycle)
        return "capacity" if full else self.serving.step.bound

    @property
    def cycle(self) -> float:
        """Seconds of a request from its arrival to its last token."""
        return self.serving.ttft + self.question.requests.output * self.serving.tpot

    @property
    def output_tokens(self) -> float:
        """A second, all chips."""
        return self.question.rate * self.question.requests.output

    @property
    def mbu(self) -> float:
        """Bytes that a decode step has to read, over its time and the stated bandwidth."""
        running, stages = self.serving.running, self.layout.pp
        p = self.replica.decode_pass(running, self.question.requests.context)
        at_work = min(1.0, max(1.0, running) / stages)  # of the stages, each has a part of the batch
        return at_work * (p.weights + p.cache) / self.serving.step.total / self.chip.bandwidth

    @property
    def mfu(self) -> float:
        """FLOPs of prompts and answers, over the chips' dense peak."""
        shape, r = self.replica.shape, self.question.requests
        flops = shape.matrix_flops(r.computed + r.output)
        flops += shape.attention_flops(r.computed, r.prompt - r.computed / 2, prompt=True)
        flops += shape.attention_flops(r.output, r.context)
        peak = self.chip.flops[self.replica.roofline.chip.format] * self.layout.chips
        return self.serving.rate * flops / peak

    @property
    def memory(self) -> dict[str, float]:
        """Bytes on a chip: weights, KV cache in use on average, free for more of it."""
        n = self.layout.chips
        used = self.serving.running * self.replica.sequence_bytes(self.question.requests.context) / n
        return {"weights": self.replica.weight_bytes / n, "cache": used, "free": self.replica.room / n - used}


@dataclass(frozen=True)
class Refusal:
    """A chip that cannot do it, and why."""

    chip: ChipSpec
    why: str


@dataclass(frozen=True)
class Answer:
    """Cheapest first; plans on chips without a known price come after those with one."""

    question: Question
    plans: tuple[Plan, ...]
    refusals: tuple[Refusal, ...]


def plan_serving(question: Question, chips: Iterable[ChipSpec] | None = None, constants: Constants = FITTED) -> Answer:
    """The best plan on each chip (all of the catalogue unless given), or why there is none."""
    found = [plan_on_chip(question, chip, constants) for chip in (catalogue() if chips is None else chips)]
    plans = [plan for plan in found if isinstance(plan, Plan)]
    refusals = [plan for plan in found if isinstance(plan, Refusal)]
    return Answer(question, tuple(sorted(plans, key=_rank)), tuple(refusals))


def _rank(plan: Plan) -> tuple[bool, float, float]:
    price = plan.cost.per_hour
    return (price is None, plan.chips * plan.chip.power if price is None else price, plan.serving.tpot)


def plan_on_chip(question: Question, chip: ChipSpec, constants: Constants = FITTED) -> Plan | Refusal:
    """The layout and format that need the fewest chips; of equal ones, the quickest."""
    replicas = [
        Replica(question.shape, chip, layout, weights, question.cache, question.engine, constants)
        for weights in ((question.weights,) if question.weights else weight_formats(question.shape, chip))
        for layout in layouts(question.shape, chip, weights)
    ]
    plans = [plan for replica in replicas if (plan := _plan(question, replica)) is not None]
    if plans:
        return min(plans, key=lambda plan: (plan.chips, plan.serving.tpot))
    return Refusal(chip, _why(question, chip, replicas))


def _plan(question: Question, replica: Replica) -> Plan | None:
    requests = question.requests
    best = best_throughput(replica, requests, question.limits)
    if best is None:
        return None
    count = math.ceil(question.rate * question.peak / best.rate)
    serving = open_loop(replica, requests, question.rate / count)
    prompts = _prompt_replicas(question, replica, best) if requests.elsewhere else 0
    if serving is None or prompts is None:
        return None
    cost = serving_cost(
        chips=(count + prompts) * replica.layout.chips,
        price_per_hour=replica.chip.price_per_hour,
        power=replica.chip.power,
        rate=question.rate,
        prompt=requests.prompt,
        output=requests.output,
        prompt_share=prompts / (count + prompts) if requests.elsewhere else serving.busy,
        prices=question.prices,
    )
    return Plan(question, replica, count, prompts, serving, tail(replica, requests, serving), count * best.rate, cost)


def _prompt_replicas(question: Question, replica: Replica, serving: Serving) -> int | None:
    """Replicas that compute prompts only, enough for 99 of 100 to wait no longer than the goal allows; their keys and
    values then travel to where they are decoded."""
    own = serving.prompt.total
    travel = replica.shape.kv_bytes(question.requests.prompt, replica.cache) / replica.layout.chips / NETWORK_BANDWIDTH
    room = question.limits.ttft - (replica.first_token + own + travel)
    if room < 0:
        return None
    used = 0.95
    while used > 0.01 and own * math.log(max(1.0, 100 * used)) / (1 - used) > room:
        used *= 0.95
    return math.ceil(question.rate * question.peak * own / used)


def _why(question: Question, chip: ChipSpec, replicas: list[Replica]) -> str:
    """Of all that was tried, the goal that came nearest to being met."""
    requests, limits = question.requests, question.limits
    if not replicas:
        weights = question.weights or weight_formats(question.shape, chip)[-1]
        needed = question.shape.weight_bytes(weights) / 1e9
        return f"the weights ({weights}, {needed:,.0f} GB) do not fit on the {chip.group} chips that its links join"
    with_room = [replica for replica in replicas if replica.slots(requests.context)]
    if not with_room:
        return f"no room for the keys and values of {requests.prompt + requests.output:,.0f} tokens beside the weights"
    alone = [(replica, closed_loop(replica, requests, 1)) for replica in with_room]
    replica, quickest = min(alone, key=lambda pair: pair[1].tpot)
    if quickest.tpot > limits.tpot:
        return (
            f"a token takes at least {1e3 * quickest.tpot:.1f} ms ({replica.weights}, {replica.layout}; "
            f"{quickest.step.bound}), the goal is {1e3 * limits.tpot:g} ms"
        )
    replica, soonest = min(alone, key=lambda pair: pair[1].ttft)
    if soonest.ttft > limits.ttft:
        return (
            f"a first token takes at least {1e3 * soonest.ttft:,.0f} ms ({replica.weights}, {replica.layout}; "
            f"{soonest.prompt.bound}), the goal is {1e3 * limits.ttft:g} ms"
        )
    return "alone a request meets the goals, but not with others beside it"


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise InvalidRequest(f"{name} must be above 0, not {value:g}", param=name)


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InvalidRequest(f"{name} must be at least 0 and below 1, not {value:g}", param=name)
