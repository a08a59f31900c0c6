"""How fast an upstream was of late: running means, kept apart for streams and for whole replies."""

from __future__ import annotations

_WEIGHT = 0.2


class Latencies:
    """By model: seconds to a stream's first token, and to a whole reply."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, bool], float] = {}

    def learn(self, model: str, stream: bool, seconds: float) -> None:
        known = self._means.get((model, stream), seconds)
        self._means[model, stream] = known + _WEIGHT * (seconds - known)

    def of(self, model: str, stream: bool) -> float:
        """0 where nothing is known: who was never asked is asked next."""
        return self._means.get((model, stream), 0.0)

    def as_dict(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for (model, stream), mean in self._means.items():
            found.setdefault(model, {})["first_token" if stream else "whole"] = round(mean, 4)
        return found
