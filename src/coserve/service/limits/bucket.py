"""Token buckets: plain data, and the arithmetic that all stores share.

What is kept of a bucket is how much of it is *used*; that melts away at `capacity` per `period`. So a bucket that
nobody knows is a full one, and a limit that is raised or lowered holds at once, for what was used before as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

UNUSED_SECONDS = 40 * 86_400.0  # when a bucket that never refills is forgotten: later than the month that it is for


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `capacity` at once, refilled evenly within `period` seconds.

    A period of `math.inf` never refills, such as a month's budget whose key names the month. Such a bucket is
    forgotten 40 days after it was last drawn from. Raises `ValueError` for numbers that make no sense.
    """

    key: str
    capacity: float
    period: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.capacity) and self.capacity >= 0 and self.period > 0):
            raise ValueError(f"a limit needs a finite capacity and a period above 0: {self}")

    @property
    def rate(self) -> float:
        """What flows back in a second."""
        return self.capacity / self.period


@dataclass(frozen=True, slots=True)
class Draw:
    """An amount to be taken from a limit, in the capacity's unit. Raises `ValueError` if it is not finite."""

    limit: Limit
    amount: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount):
            raise ValueError(f"an amount must be finite: {self}")


@dataclass(frozen=True, slots=True)
class Level:
    """How a bucket stands: what remains (below 0: debt), and the seconds until it is full."""

    limit: Limit
    remaining: float
    reset: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The draw that is short the longest, what remains there, and the seconds until its amount will be there.

    Those are `math.inf` if that will never be: the amount exceeds the capacity, or the limit never refills.
    """

    draw: Draw
    remaining: float
    retry_after: float


def merge(draws: Sequence[Draw]) -> list[Draw]:
    """One draw for each key, in the order of the keys. Raises `ValueError` if two limits share a key."""
    merged: dict[str, Draw] = {}
    for draw in draws:
        limit = draw.limit
        before = merged.get(limit.key)
        if before is None:
            merged[limit.key] = draw
        elif before.limit == limit:
            merged[limit.key] = Draw(limit, before.amount + draw.amount)
        else:
            raise ValueError(f"two limits with one key: {before.limit} and {limit}")
    return [merged[key] for key in sorted(merged)]


def melted(used: float, rate: float, seconds: float) -> float:
    """What is still used some seconds later. A clock that went back changes nothing."""
    return max(0.0, used - rate * max(0.0, seconds))


def fits(draw: Draw, used: float) -> bool:
    return used + draw.amount <= draw.limit.capacity


def seconds_to_full(rate: float, used: float) -> float:
    if used <= 0:
        return 0.0
    return used / rate if rate > 0 else math.inf


def seconds_to_keep(rate: float, used: float) -> float:
    """How long a bucket that is used so far must be remembered."""
    return used / rate if rate > 0 else UNUSED_SECONDS


def level(limit: Limit, used: float) -> Level:
    return Level(limit, limit.capacity - used, seconds_to_full(limit.rate, used))


def refusal(draws: Sequence[Draw], used: Sequence[float]) -> Refusal:
    """Why these cannot all be drawn from buckets that are used so far. At least one must not fit."""
    short = [(draw, amount) for draw, amount in zip(draws, used, strict=True) if not fits(draw, amount)]
    draw, amount = max(short, key=lambda pair: retry_after(*pair))
    return Refusal(draw, draw.limit.capacity - amount, retry_after(draw, amount))


def retry_after(draw: Draw, used: float) -> float:
    """Seconds until a draw that does not fit will. A hair more than exact, so that rounding refuses nobody twice."""
    limit = draw.limit
    if draw.amount > limit.capacity or limit.rate == 0:
        return math.inf
    exact = (used + draw.amount - limit.capacity) / limit.rate
    return exact * (1 + 1e-9) + 1e-6
