"""Money: prices in USD a million tokens, amounts as whole nano-dollars, so that sums are exact."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

NANO = 10**9
"""Nano-dollars in a dollar."""


def cost(tokens: int, price: Decimal) -> int:
    """Nano-dollars of so many tokens at a price in USD a million: each amount is rounded once, half to even."""
    return tokens and int((tokens * price * 1000).to_integral_value(ROUND_HALF_EVEN))


def nano(usd: Decimal | float | str) -> int:
    """Dollars as nano-dollars."""
    return int((Decimal(str(usd)) * NANO).to_integral_value(ROUND_HALF_EVEN))


def usd(amount: int) -> float:
    """Nano-dollars as dollars, for people and for JSON."""
    return amount / NANO
