"""Quantities as people write them: 500ms, 24h, 5B, 50M/day."""

from __future__ import annotations

import math
import re

from coserve.errors import InvalidRequest

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "day": 86400.0}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_PERIODS = {"s": 1.0, "h": 3600.0, "day": 86400.0, "d": 86400.0, "month": 30 * 86400.0}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


def seconds(text: str, name: str) -> float:
    """ "500ms" -> 0.5. Raises `InvalidRequest` for anything without a unit of time."""
    match = re.fullmatch(_NUMBER + r"\s*([a-z]+)", text.strip().lower())
    found = float(match[1]) * _TIMES.get(match[2], math.nan) if match else math.nan
    if not math.isfinite(found):
        raise InvalidRequest(f"{name}: {text!r} is not a time such as 25ms, 2s or 24h", param=name)
    return found


def tokens(text: str, name: str) -> tuple[float, float | None]:
    """ "5B" -> (5e9, None); "50M/day" -> (5e7, 86400): tokens, and the seconds in which they come anew each time.

    Raises `InvalidRequest`."""
    match = re.fullmatch(_NUMBER + r"\s*([kmbt]?)(?:\s*/\s*([a-z]+))?", text.strip().lower())
    found = float(match[1]) * _COUNTS[match[2]] if match else math.nan
    if not match or not math.isfinite(found) or (match[3] and match[3] not in _PERIODS):
        raise InvalidRequest(f"{name}: {text!r} is not a number of tokens such as 5B or 50M/day", param=name)
    return found, _PERIODS[match[3]] if match[3] else None
