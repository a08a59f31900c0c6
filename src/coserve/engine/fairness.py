"""Who of those that share a priority has had the least: virtual token counters.

After VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): a share's counter grows by what it is
served, over its weight, and the share with the smallest counter is next. One that was idle starts again at the least
counter of the others: idleness earns nothing, and a debt is not forgotten while others are served.
"""

from __future__ import annotations

from collections import Counter


class TokenCounters:
    """The counters of one priority's shares. A share is present while it has requests, waiting or running."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._requests: Counter[str] = Counter()

    def served(self, share: str) -> float:
        """Tokens served to a share, over its weight, as far as it matters."""
        return self._served[share]

    def join(self, share: str) -> None:
        """One more request of a share."""
        if not self._requests[share]:
            least = min((self._served[other] for other, count in self._requests.items() if count), default=0.0)
            self._served[share] = max(least, self._served.get(share, 0.0))
        self._requests[share] += 1

    def leave(self, share: str) -> None:
        """One request less. When nobody is left, nobody had to wait: all start anew."""
        self._requests[share] -= 1
        if not self._requests[share]:
            del self._requests[share]
        if not self._requests:
            self._served.clear()

    def charge(self, share: str, tokens: int, weight: float) -> None:
        self._served[share] += tokens / weight

    def refund(self, share: str, tokens: int, weight: float) -> None:
        """What was charged, and not served after all."""
        if share in self._served:  # else all have started anew
            self._served[share] -= tokens / weight
