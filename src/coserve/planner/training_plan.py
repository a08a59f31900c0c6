"""Chips for training: how many, how long, at what cost; beside serving, or on the same chips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from coserve.chips import ChipSpec, catalogue
from coserve.errors import InvalidRequest
from coserve.planner.candidates import MOST_TENSOR_PARALLEL
from coserve.planner.constants import FITTED, Constants
from coserve.planner.layout import Layout, powers_of_two
from coserve.planner.serving_plan import Answer, Plan, Refusal
from coserve.planner.shape import ModelShape
from coserve.planner.training import WHOLE_RUN, Run, Training, fits, memory_parts, training_speed

SLACK_USED = 0.58
"""Share of the arithmetic that serving leaves idle which co-served training gets: coserve's own measurement on a CPU
(29 % of its speed alone at half load; docs/benchmarks.md). The aim there is 60 % at half load."""
MOST_CHIPS = 16384
"""Chips of a training run at most: beyond, nobody has published how steps scale."""


@dataclass(frozen=True)
class TrainingQuestion:
    shape: ModelShape
    tokens: float  # to be trained on
    deadline: float  # seconds
    run: Run

    def __post_init__(self) -> None:
        for name, value in (("train-tokens", self.tokens), ("deadline", self.deadline)):
            if not value > 0:
                raise InvalidRequest(f"{name} must be above 0, not {value:g}", param=name)

    @property
    def rate(self) -> float:
        """Tokens a second that the deadline asks for."""
        return self.tokens / self.deadline


@dataclass(frozen=True)
class TrainingPlan:
    question: TrainingQuestion
    chip: ChipSpec
    chips: int
    layout: Layout  # of a replica
    run: Run
    speed: Training  # of a chip, in its steps
    memory: dict[str, float]  # bytes on a chip, by part

    @property
    def tokens_per_second(self) -> float:
        """All chips, over the whole run."""
        return self.chips * self.speed.tokens * WHOLE_RUN

    @property
    def seconds(self) -> float:
        return self.question.tokens / self.tokens_per_second

    @property
    def cost(self) -> float | None:
        """USD of the run."""
        price = self.chip.price_per_hour
        return None if price is None else self.chips * price * self.seconds / 3600


def plan_training(
    question: TrainingQuestion, chips: Iterable[ChipSpec] | None = None, constants: Constants = FITTED
) -> tuple[tuple[TrainingPlan, ...], tuple[Refusal, ...]]:
    """The plan with the fewest chips on each kind, cheapest first, and the chips that cannot."""
    found = [training_on_chip(question, chip, constants) for chip in (catalogue() if chips is None else chips)]
    plans = [plan for plan in found if isinstance(plan, TrainingPlan)]
    refusals = tuple(plan for plan in found if isinstance(plan, Refusal))
    return tuple(sorted(plans, key=lambda p: (p.cost is None, p.cost or p.chips, p.seconds))), refusals


def training_on_chip(
    question: TrainingQuestion, chip: ChipSpec, constants: Constants = FITTED
) -> TrainingPlan | Refusal:
    if not chip.trains:
        return Refusal(chip, "made for inference: no training software")
    if chip.kind == "dataflow":
        return Refusal(chip, "its training streams weights from outside the chip, which is not modelled")
    plans = [plan for layout, run in _ways(question, chip) if (plan := _fewest(question, chip, layout, run, constants))]
    if plans:
        return min(plans, key=lambda plan: (plan.chips, plan.seconds))
    needed = sum(memory_parts(question.shape, replace(question.run, recompute=True), Layout(), 1).values())
    return Refusal(
        chip,
        f"{MOST_CHIPS:,} chips are too few or too small (one copy of all states takes {needed / 1e9:,.0f} GB)",
    )


def _ways(question: TrainingQuestion, chip: ChipSpec) -> Iterator[tuple[Layout, Run]]:
    for width in powers_of_two(min(chip.group, MOST_TENSOR_PARALLEL)):
        for recompute in (False, True):
            for microbatch in (1, 2, 4, 8):
                yield Layout(tp=width), replace(question.run, recompute=recompute, microbatch=microbatch)


def _fewest(
    question: TrainingQuestion, chip: ChipSpec, layout: Layout, run: Run, constants: Constants
) -> TrainingPlan | None:
    """The fewest chips (a multiple of the layout's) that hold everything and are done in time."""
    alone = training_speed(question.shape, chip, run, layout, layout.chips, constants)
    count = math.ceil(question.rate / (alone.tokens * WHOLE_RUN) / layout.chips) * layout.chips
    while count <= MOST_CHIPS:
        memory = memory_parts(question.shape, run, layout, count)
        if memory["activations"] > chip.capacity:
            return None
        speed = training_speed(question.shape, chip, run, layout, count, constants)
        plan = TrainingPlan(question, chip, count, layout, run, speed, memory)
        if fits(memory, chip) and plan.seconds <= question.deadline:
            return plan
        count = max(count + layout.chips, math.ceil(count * 1.25 / layout.chips) * layout.chips)
    return None


@dataclass(frozen=True)
class Shared:
    """One kind of chip that both serves and trains: two clusters, or one."""

    chip: ChipSpec
    serving: Plan
    training: TrainingPlan
    together: int | None  # chips of one cluster for both; None where the chips' memory does not allow it
    arithmetic_used: float  # share of the serving chips' arithmetic that serving takes
    why: str = ""

    @property
    def apart(self) -> int:
        return self.serving.chips + self.training.chips

    @property
    def saved_per_hour(self) -> float | None:
        """USD; negative where two clusters are cheaper."""
        price = self.chip.price_per_hour
        return None if price is None or self.together is None else (self.apart - self.together) * price


def plan_shared(answer: Answer, trained: Iterable[TrainingPlan]) -> tuple[Shared, ...]:
    """For each chip that has a plan to serve and one to train: one cluster for both, beside two. Cheapest first.

    Training runs where serving leaves arithmetic idle (fused into decode steps up to the roofline, and between them),
    on the same copy of the weights: adapters only. Each chip more adds all its arithmetic.
    """
    training = {plan.chip.name: plan for plan in trained}
    found = [_share(plan, training[plan.chip.name]) for plan in answer.plans if plan.chip.name in training]
    return tuple(sorted(found, key=_cheapest))


def _cheapest(shared: Shared) -> tuple[bool, float]:
    chips = shared.apart if shared.together is None else min(shared.apart, shared.together)
    price = shared.chip.price_per_hour
    return (price is None, chips * (price or shared.chip.power))


def _share(plan: Plan, training: TrainingPlan) -> Shared:
    used = arithmetic_used(plan)
    if training.run.method == "full":
        return Shared(plan.chip, plan, training, None, used, "full fine-tuning changes the weights that are served")
    n = plan.layout.chips
    extra = sum(size for part, size in training.memory.items() if part != "weights")
    if extra > plan.memory["free"]:
        return Shared(plan.chip, plan, training, None, used, "no memory left for training beside the KV cache")
    needed = training.question.rate / (training.speed.tokens * WHOLE_RUN)  # chips' whole arithmetic
    count = max(plan.chips, needed / SLACK_USED + used * plan.chips)
    return Shared(plan.chip, plan, training, math.ceil(count / n) * n, used)


def arithmetic_used(plan: Plan) -> float:
    """Share of the time in which the chips' arithmetic works for serving, at the average load."""
    serving, output = plan.serving, plan.question.requests.output
    steps = serving.rate * output / max(1.0, serving.running)  # a second
    return min(1.0, serving.rate * serving.prompt.arithmetic / plan.layout.pp + steps * serving.step.arithmetic)
