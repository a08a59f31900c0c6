"""Background work in the slack that serving leaves: train tokens in steps, and slices between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from coserve.engine.background_queue import BackgroundQueue
from coserve.engine.batch import Ride
from coserve.engine.config import EngineConfig
from coserve.engine.plan import Plan
from coserve.engine.predictor import Predictor
from coserve.engine.protection import MARGIN
from coserve.engine.runner import Runner
from coserve.engine.scheduler import Scheduler
from coserve.engine.search import largest
from coserve.engine.segment import Segment
from coserve.engine.slack import SlackAccount

_IDLE_SLICE_LIMITS = (0.001, 0.1)  # seconds


class CoServing:
    """Decides when the works of `queue` run, and how much of them, by what `protect` allows.

    `rides`: whether train tokens go along in steps. `somebody_came`: whether a request waits to be accepted.
    """

    def __init__(
        self,
        config: EngineConfig,
        scheduler: Scheduler,
        predictor: Predictor,
        runner: Runner,
        queue: BackgroundQueue,
        *,
        rides: bool,
        somebody_came: Callable[[], bool],
    ):
        self._config, self._scheduler, self._predictor, self._runner = config, scheduler, predictor, runner
        self._queue = queue
        self._rides, self._somebody_came = rides, somebody_came
        self._slack = SlackAccount(1.0 if self._by_goals else float(config.protect))
        self._due_seconds = 0.0  # that slices may take as soon as the step on its way has landed; under a factor
        self._prompt_seconds = self._prompt([0] * 128)

    @property
    def _by_goals(self) -> bool:
        return self._config.protect == "goals"

    def ride(self, plan: Plan) -> Ride | None:
        """As many train tokens as the slack of this step pays for.

        Prompts leave none, as they wait for arithmetic; nor do lower priorities that got less than they could use.
        """
        if not self._rides or not self._queue or self._scheduler.backlog or plan.short:
            return None
        segments, whole = plan.segments(), plan.alone + plan.grown
        budget = whole + self._allowance(plan, whole)
        most = self._config.max_batch_tokens - plan.rows
        return self._queue.ride(largest(0, most, lambda rows: self._predictor.seconds(segments, rows) <= budget))

    def pay(self, seconds: float) -> None:
        """A ride has lengthened its step by so much."""
        self._slack.spend(seconds)

    def launch_behind(self, plan: Plan) -> float:
        """Launch slices behind this plan's step, which is on its way, where the next one could be: so launching them
        costs the chip no time.

        No more than may be in flight: who waited for one of them would wait for the step. Returns their seconds.
        """
        if not self._queue or self._scheduler.backlog or not self._runner.goes_ahead(plan):
            return 0.0
        # Under goals: until they have to make room for this step and the next.
        seconds = self._until_goals(plan, 2 * plan.alone) if self._by_goals else self._due_seconds
        return self._queue.fill(seconds, lambda: self._queue.full or self._somebody_came())

    def use_slack(self, plan: Plan, whole: float, *, behind: float, ahead: bool) -> float:
        """After a step of `whole` seconds of inference: slices, while the slack pays for them, and nobody comes.

        `behind`: seconds of slices that were launched behind it. `ahead`: the next step is on its way already. What is
        launched behind that cannot be taken back for whoever comes; so slices are due as soon as the slack pays for
        them, and then come before the step after it. Returns the seconds of all of this step's slices.
        """
        begun, self._due_seconds = time.perf_counter(), 0.0
        seconds, spent = self._slack_behind(plan, whole) if self._queue else 0.0, behind
        if ahead:
            self._due_seconds = seconds
        elif seconds > 0:

            def interrupted() -> bool:
                return self._somebody_came() or time.perf_counter() - begun >= seconds

            spent += self._queue.fill(seconds - behind, interrupted)
        if spent:
            spent = max(spent, time.perf_counter() - begun)  # a GPU may have waited for launches
        self._slack.spend(spent)
        return spent

    def run_idle_slice(self) -> float:
        """Nobody is served: run a slice that a new request would hardly notice. Returns its seconds; 0 without any.

        A request comes, on average, in the middle of a slice: it waits for half of it, and on a GPU for the next one,
        which was launched already.
        """
        if not self._queue:
            return 0.0
        share = 0.1 if self._by_goals else self._slack.factor - 1
        low, high = _IDLE_SLICE_LIMITS
        seconds = min(high, max(low, share * self._prompt_seconds / (self._queue.depth - 0.5)))
        return self._queue.run(seconds, at_least_one=True)

    def heed(self, prompt: Sequence[int]) -> None:
        """A request has come; its first token will be made of computing its prompt."""
        self._prompt_seconds += 0.1 * (self._prompt(prompt) - self._prompt_seconds)

    def _prompt(self, tokens: Sequence[int]) -> float:
        return self._predictor.seconds([Segment("prefill", tokens, 0, (), sample=True)])

    def _allowance(self, plan: Plan, whole: float) -> float:
        """Seconds by which a step of `whole` seconds may grow for training's sake: what protects the highest priority
        from lower ones, less what these took."""
        if not self._by_goals:
            return max(0.0, (self._slack.factor - 1) * plan.alone - plan.grown)
        now = time.perf_counter()
        first = min((request.due(self._config) for request in self._scheduler.protected()), default=now)
        return max(0.0, first - now - whole)

    def _slack_behind(self, plan: Plan, whole: float) -> float:
        """Seconds that slices may take now. None while prompts wait: whatever delays one delays all behind it."""
        if self._by_goals:
            return self._until_goals(plan, whole)
        self._slack.spend(plan.grown)
        smallest = self._queue.smallest()
        if smallest is None:
            return 0.0
        seconds = self._slack.earn(whole, min(whole, self._decoding_seconds(plan)), smallest)
        return 0.0 if self._scheduler.backlog or plan.short else seconds

    def _until_goals(self, plan: Plan, whole: float) -> float:
        """Seconds that are left until the first deadline, less `whole` for the steps before it."""
        return 0.0 if self._scheduler.backlog or plan.short else MARGIN * self._allowance(plan, whole)

    def _decoding_seconds(self, plan: Plan) -> float:
        """What a step would take without its prompts; one of prompts alone, all of it."""
        decoding = [segment for segment in plan.segments() if segment.kind == "decode"]
        return self._predictor.seconds(decoding or plan.segments())
