"""How much time training may take while requests are being served."""

from __future__ import annotations

from collections import deque


class SlackAccount:
    """Under a factor `protect`, every second of inference earns `protect - 1` seconds of training.

    So tokens are slowed by at most the factor on average. When it is spent matters too. Some steps are slow of
    themselves, because a prompt is in them. Two ways to spend:

    At once, where even small slices use their time well, as on a GPU. No step is followed by more than it has earned,
    so that half of the tokens, too, are slowed by no more than the factor. What could not be spent, since a request
    came, is spent behind slow steps: up to twice what they have earned, and with a typical step no longer than they
    were. A smallest slice that takes more than a step earns is earned by several.

    With `saves`, where a large slice does more in its time than many small ones, but makes one token late. A cheap step
    with a slice behind it may take as long as the slow ones (times the factor) without making the slowest tokens
    slower. Savings are kept for such a slice; where all steps are alike, for a step or two.
    """

    KEEP_STEPS = 2.0
    WORTHWHILE = 0.75  # share of the largest harmless slice that is worth not waiting any longer
    SLOW, TYPICAL = 0.98, 0.5  # quantiles of the recent steps
    _WINDOW, _REFRESH = 512, 32  # steps

    def __init__(self, factor: float, *, saves: bool = True):
        self.factor, self._saves = factor, saves
        self.balance = 0.0
        self._recent: deque[float] = deque(maxlen=self._WINDOW)
        self._steps = 0
        self._slow = self._typical = 0.0

    def earn(self, step_seconds: float, smallest_slice: float) -> float:
        """Book a step of inference. Returns the seconds that may be spent behind it: 0 if it is better to wait."""
        self._remember(step_seconds)
        earned = (self.factor - 1) * step_seconds
        if earned <= 0:
            return 0.0
        if self._saves:
            return self._saved_up(step_seconds, earned, smallest_slice)
        return self._at_once(step_seconds, earned, smallest_slice)

    def _at_once(self, step_seconds: float, earned: float, smallest_slice: float) -> float:
        kept = max(self.KEEP_STEPS * (self.factor - 1) * self._slow, smallest_slice)
        self.balance = min(self.balance + earned, kept + earned)
        if self.balance < smallest_slice:
            return 0.0
        longest = max(earned, min(self.KEEP_STEPS * earned, step_seconds - self._typical), smallest_slice)
        return min(self.balance, longest)

    def _saved_up(self, step_seconds: float, earned: float, smallest_slice: float) -> float:
        harmless = self.factor * self._slow
        target = max(smallest_slice, self.WORTHWHILE * (harmless - self._typical))
        self.balance = min(self.balance + earned, max(self.KEEP_STEPS * earned, target + earned))
        if self.balance < target:
            return 0.0
        longest = max(self.KEEP_STEPS * earned, harmless - step_seconds, smallest_slice)
        return self.balance if self.balance <= longest else (longest if longest >= target else 0.0)

    def share(self, alone: float, seconds: float) -> None:
        """Book a step that took `seconds` beside training, and would have taken `alone` by itself."""
        earned = (self.factor - 1) * alone
        self.balance = min(self.balance + earned - max(0.0, seconds - alone), self.KEEP_STEPS * earned)

    def spend(self, seconds: float) -> None:
        self.balance -= seconds

    def _remember(self, step_seconds: float) -> None:
        self._recent.append(step_seconds)
        if self._steps % self._REFRESH == 0:
            ordered = sorted(self._recent)
            self._slow = ordered[int(self.SLOW * (len(ordered) - 1))]
            self._typical = ordered[int(self.TYPICAL * (len(ordered) - 1))]
        self._steps += 1
