"""Plans the steps of an engine, and launches them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from coserve.engine.batch import Ride
from coserve.engine.config import EngineConfig
from coserve.engine.plan import Plan
from coserve.engine.predictor import Predictor
from coserve.engine.protection import Protection
from coserve.engine.runner import Flight, Runner
from coserve.engine.scheduler import Scheduler
from coserve.engine.step_size import StepSize
from coserve.kernels.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Steps:
    """What does not find its memory is not launched, and its plan has come to nothing."""

    def __init__(self, config: EngineConfig, scheduler: Scheduler, predictor: Predictor, runner: Runner):
        self._scheduler, self._predictor, self._runner = scheduler, predictor, runner
        self.size = StepSize(config, scheduler, predictor)
        self._protection = Protection(config, predictor)

    def plan(self, now: float) -> Plan:
        """The next step: the highest priority, and who may ride along of the others."""
        plan = self._scheduler.plan(self.size.max_tokens(now), now)
        for request, length in self._protection.riders(plan, self.size.most_rows(now), now):
            self._scheduler.take(plan, request, length, now)
        plan.arrange()
        self.size.see(now)
        return plan

    def launch(self, plan: Plan, ride: Ride | None) -> Flight | None:
        flight = self._if_memory_reaches(plan, lambda: self._runner.launch(plan, ride))
        if flight is not None:
            self.size.shortage.launched()
        return flight

    def launch_ahead(self, before: Plan) -> Flight | None:
        """The step behind this plan's, which is on its way, if it will be the same again."""
        if not self._runner.goes_ahead(before):
            return None
        now = time.perf_counter()
        plan = self._scheduler.plan_ahead(before, now)
        if plan is None:
            return None
        self.size.see(now)
        plan.alone = self._predictor.seconds(plan.segments())
        return self._if_memory_reaches(plan, lambda: self._runner.launch_ahead(plan))

    def _if_memory_reaches(self, plan: Plan, launch: Callable[[], Flight]) -> Flight | None:
        try:
            return launch()
        except Exception as error:  # which holds on to all that the step had allocated, until it is gone
            if not is_out_of_memory(error):
                raise
            log.warning("a step of %d tokens found no memory: %s", plan.rows, str(error))
        for request in plan.asking():
            self._scheduler.take_back(request)
        self._protection.take_back(plan)
        return None
