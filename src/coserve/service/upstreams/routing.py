"""Which upstream first: by order, weight, latency or cost. Those that are not ready come last, the soonest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from random import Random

from coserve.service.upstreams.config import ModelConfig


@dataclass(frozen=True)
class Candidate:
    """What routing knows of an upstream, or of the server's own engine."""

    name: str
    seconds_away: float = 0.0  # until it may be asked; 0: now
    latency: float = 0.0  # seconds, of late; 0: unknown
    cost: Decimal = Decimal(0)  # of this request, in any one unit


def ranked(model: ModelConfig, candidates: Iterable[Candidate], random: Random) -> list[Candidate]:
    """The candidates in the order in which to try them."""
    return sorted(candidates, key=_key(model, random))


def _key(model: ModelConfig, random: Random) -> Callable[[Candidate], tuple[float, float | Decimal, int]]:
    place = {name: index for index, name in enumerate(model.via)}

    def key(candidate: Candidate) -> tuple[float, float | Decimal, int]:
        return candidate.seconds_away, preference(candidate), place[candidate.name]

    def preference(candidate: Candidate) -> float | Decimal:
        if model.routing == "weight":  # the least of such draws is each one's with the probability of its weight
            return random.expovariate(model.weights[candidate.name])
        if model.routing == "latency":
            return candidate.latency
        return candidate.cost if model.routing == "cost" else 0

    return key
