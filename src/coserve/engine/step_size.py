"""How many tokens the next step may have."""

from __future__ import annotations

from collections.abc import Sequence

from coserve.engine.active import ActiveRequest
from coserve.engine.config import EngineConfig
from coserve.engine.predictor import Predictor
from coserve.engine.scheduler import Scheduler
from coserve.engine.search import largest
from coserve.engine.shortage import Shortage

_SMALLEST_CHUNK = 16  # tokens of a prompt that go along in any step
_EXPECTED_SECONDS = 10.0  # for so long after a request, another one of its priority may come any moment


class StepSize:
    """By who waits for a token, who may come, and what memory there is."""

    def __init__(self, config: EngineConfig, scheduler: Scheduler, predictor: Predictor):
        self._config, self._scheduler, self._predictor = config, scheduler, predictor
        self.shortage = Shortage(config.max_batch_tokens)
        self._last_seen: dict[int, float] = {}  # when a request of a priority last ran

    def see(self, now: float) -> None:
        """Remember who runs."""
        for request in self._scheduler.running:
            self._last_seen[request.priority] = now

    def max_tokens(self, now: float) -> int:
        """Beside requests that decode, as long chunks of prompts as their deadlines allow.

        Where decoding alone misses them, a chunk may take as long again: else prompts would hardly move. Steps are
        kept as short when nobody decodes but requests of a higher priority came lately: the next one to come waits for
        one such step at most, not for the longest one.
        """
        foremost, most = self._scheduler.foremost(), self.most_rows(now)
        waiting = [r for r in foremost if r.decoding]
        if not waiting and not self._higher_expected(foremost, now):
            return most
        context = sum(len(r.tokens) for r in waiting)

        def seconds(rows: int) -> float:
            return self._predictor.decoding_seconds(len(waiting), context, rows)

        own = min((r.due(self._config) - now for r in waiting), default=self._config.itl_goal)
        goal = max(own, 2 * seconds(len(waiting)))
        return largest(min(most, len(waiting) + _SMALLEST_CHUNK), most, lambda rows: seconds(rows) <= goal)

    def most_rows(self, now: float) -> int:
        """Tokens that there is memory for, whoever waits."""
        return self.shortage.most_rows(self.least_rows(), now)

    def least_rows(self) -> int:
        """Tokens that a step may have whatever memory there is: all who decode, and something of a prompt."""
        return sum(r.decoding for r in self._scheduler.running) + _SMALLEST_CHUNK

    def _higher_expected(self, foremost: Sequence[ActiveRequest], now: float) -> bool:
        """Whether requests of a higher priority than these ran within the last seconds."""
        highest = max((r.priority for r in foremost), default=0)
        return any(p > highest and now - seen < _EXPECTED_SECONDS for p, seen in self._last_seen.items())
