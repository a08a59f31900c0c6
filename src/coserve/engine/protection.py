"""How far lower priorities may lengthen the steps of the highest."""

from __future__ import annotations

from coserve.engine.active import ActiveRequest
from coserve.engine.config import EngineConfig
from coserve.engine.load import Load
from coserve.engine.plan import Plan
from coserve.engine.predictor import Predictor
from coserve.engine.search import largest

MARGIN = 0.9  # of the time until a deadline: predictions err


class Protection:
    """Chooses who of the lower priorities rides along.

    Under a factor `protect`, steps of the highest priority grow by at most that factor on average. What is not used is
    saved, for two steps or for the next row in turn, so that a row which costs more than one step allows still rides
    now and then. Under "goals" a step may last until the first of the highest priority's deadlines.
    """

    KEEP_STEPS = 2.0

    def __init__(self, config: EngineConfig, predictor: Predictor):
        self._config, self._predictor = config, predictor
        self._balance = 0.0  # seconds, under a factor

    def riders(self, plan: Plan, most: int, now: float) -> list[tuple[ActiveRequest, int]]:
        """Those of `plan.lower` that ride along, with so many tokens each, in a step of at most `most`. Completes the
        plan's predictions.

        Who is next and does not fit ends the list: nobody overtakes, so everybody's turn comes.
        """
        load = Load.of(plan.segments())
        plan.alone = self._predictor.load_seconds(load)
        if not plan.lower:
            return []
        limit = plan.alone + self._allowance(plan, load, now)
        riders = []
        for request in plan.lower:
            length = self._length(request, load, most, limit)
            if length:
                riders.append((request, length))
                load = _with(load, request, length)
            if length < request.remaining:
                plan.short = True
                break
        plan.grown = max(0.0, self._predictor.load_seconds(load) - plan.alone)
        self._balance -= plan.grown
        return riders

    def take_back(self, plan: Plan) -> None:
        """The step did not take place."""
        self._balance += plan.grown

    def _length(self, request: ActiveRequest, load: Load, most: int, limit: float) -> int:
        """How many of a request's tokens fit into a step of `most` rows and `limit` seconds beside this load."""
        most = min(request.remaining, most - load.rows)
        return largest(0, most, lambda n: self._predictor.load_seconds(_with(load, request, n)) <= limit)

    def _allowance(self, plan: Plan, load: Load, now: float) -> float:
        """Seconds by which this step may grow."""
        if self._config.protect == "goals":
            return max(0.0, MARGIN * self._time_left(plan, now) - plan.alone)
        earned = (float(self._config.protect) - 1) * plan.alone
        if not earned:
            return 0.0
        next_row = self._predictor.load_seconds(_with(load, plan.lower[0], 1)) - plan.alone
        self._balance = min(self._balance + earned, max(self.KEEP_STEPS * earned, next_row + earned))
        return max(0.0, self._balance)

    def _time_left(self, plan: Plan, now: float) -> float:
        """Seconds that this step may take by the deadlines of those in it. A prompt's time is for all of its chunks."""
        return min(
            (request.due(self._config) - now) * len(segment.tokens) / request.remaining
            for request, segment in plan.chosen
        )


def _with(load: Load, request: ActiveRequest, length: int) -> Load:
    return load.plus(request.computed, length, sample=length == request.remaining)
