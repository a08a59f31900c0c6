"""Money and energy: what chips cost for what they do."""

from __future__ import annotations

from dataclasses import dataclass

HOURS_PER_MONTH = 730.0
POWER_OVERHEAD = 1.25
"""Watts of a data centre for a watt of its chips' stated power: cooling, hosts, losses."""


@dataclass(frozen=True)
class Prices:
    """What customers pay, in USD a million tokens."""

    input: float
    output: float

    def of_request(self, prompt: float, output: float) -> float:
        return (self.input * prompt + self.output * output) / 1e6


@dataclass(frozen=True)
class Cost:
    """Of serving at a given load. USD; None where the chip's price is not known."""

    per_hour: float | None
    per_million_input: float | None  # the chips' time that prompts take, over their tokens
    per_million_output: float | None  # the rest of the time, over the tokens of the answers
    kwh_per_million_output: float  # all energy, at the chips' stated power, over the tokens of the answers
    break_even_rate: float | None = None  # requests a second from which on prices cover these chips
    margin: float | None = None  # of the revenue at this load; negative = a loss


def serving_cost(
    chips: int,
    price_per_hour: float | None,
    power: float,
    rate: float,
    prompt: float,
    output: float,
    prompt_share: float,
    prices: Prices | None = None,
) -> Cost:
    """`power` and price are of a chip, `rate` is requests a second in all, `prompt_share` the share of the time that
    prompts take."""
    kwh = chips * power * POWER_OVERHEAD / 1e3 / 3600 / (rate * output) * 1e6
    if price_per_hour is None:
        return Cost(None, None, None, kwh)
    hourly = chips * price_per_hour
    second = hourly / 3600
    request = prices.of_request(prompt, output) if prices else None
    return Cost(
        per_hour=hourly,
        per_million_input=second * prompt_share / (rate * prompt) * 1e6,
        per_million_output=second * (1 - prompt_share) / (rate * output) * 1e6,
        kwh_per_million_output=kwh,
        break_even_rate=second / request if request else None,
        margin=1 - second / (rate * request) if request else None,
    )
