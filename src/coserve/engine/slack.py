"""How much time training may take while requests are being served."""

from __future__ import annotations

from collections import deque


class SlackAccount:
    """Under a factor `protect`, every second of decoding earns `protect - 1` seconds of training.

    So tokens are slowed by at most the factor on average. Prompts earn nothing while others wait for their next token:
    they come as often whatever training does, so a token that takes longer meets more of them. With a share p of the
    time for prompts and t for training a token takes its own time over 1 - p - t instead of 1 - p: that is the factor
    if t is paid by what decoding alone takes.

    When it is spent matters too. A large slice does more in its time than many small ones, but makes one token late.
    Some steps are slow of themselves, because a prompt is in them: a cheap step with a slice behind it may take as long
    as those (times the factor) without making the slowest tokens slower. Savings are kept for such a slice; where all
    steps are alike, for a step or two.
    """

    KEEP_STEPS = 2.0
    WORTHWHILE = 0.75  # share of the largest harmless slice that is worth not waiting any longer
    SLOW, TYPICAL = 0.98, 0.5  # quantiles of the recent steps
    _WINDOW, _REFRESH = 512, 32  # steps

    def __init__(self, factor: float):
        self.factor = factor
        self.balance = 0.0
        self._recent: deque[float] = deque(maxlen=self._WINDOW)
        self._steps = 0
        self._slow = self._typical = 0.0

    def earn(self, step_seconds: float, decoding_seconds: float, smallest_slice: float) -> float:
        """Book a step of inference, `decoding_seconds` of which it would have taken without its prompts. Returns the
        seconds that may be spent behind it: 0 if it is better to wait."""
        self._remember(step_seconds)
        earned = (self.factor - 1) * decoding_seconds
        if earned <= 0:
            return 0.0
        harmless = self.factor * self._slow
        target = max(smallest_slice, self.WORTHWHILE * (harmless - self._typical))
        self.balance = min(self.balance + earned, max(self.KEEP_STEPS * earned, target + earned))
        if self.balance < target:
            return 0.0
        longest = max(self.KEEP_STEPS * earned, harmless - step_seconds, smallest_slice)
        return self.balance if self.balance <= longest else (longest if longest >= target else 0.0)

    def spend(self, seconds: float) -> None:
        self.balance -= seconds

    def _remember(self, step_seconds: float) -> None:
        self._recent.append(step_seconds)
        if self._steps % self._REFRESH == 0:
            ordered = sorted(self._recent)
            self._slow = ordered[int(self.SLOW * (len(ordered) - 1))]
            self._typical = ordered[int(self.TYPICAL * (len(ordered) - 1))]
        self._steps += 1
