"""How long an answer will be, before it is made: what the project's answers of late were."""

from __future__ import annotations

from collections import OrderedDict

FIRST = 256
"""Tokens, where nothing is known."""
_WEIGHT = 0.1
_KNOWN = 10_000  # projects and models that are remembered


class Estimates:
    """A running mean of completion tokens, by project and model.

    Reserving all of `max_tokens` would refuse one-word requests: users set it high, and most answers are short.
    """

    def __init__(self) -> None:
        self._mean: OrderedDict[tuple[str, str], float] = OrderedDict()

    def completion(self, project: str, model: str, most: int) -> int:
        """Tokens of one choice, at most `most`."""
        return min(most, round(self._mean.get((project, model), FIRST)))

    def learn(self, project: str, model: str, tokens: float) -> None:
        known = self._mean.setdefault((project, model), FIRST)
        self._mean[project, model] = known + _WEIGHT * (tokens - known)
        self._mean.move_to_end((project, model))
        if len(self._mean) > _KNOWN:
            self._mean.popitem(last=False)
