"""Numbers as people read them. A dash stands for what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

UNKNOWN = "-"
_BARS = "▁▂▃▄▅▆▇█"


def milliseconds(seconds: float | None) -> str:
    """12 ms, 1.2 ms, 3.4 s."""
    if seconds is None:
        return UNKNOWN
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{fraction * 100:.0f} %"


def rate(value: float) -> str:
    """1,234 or 5.6."""
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, seconds_left = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds_left:02}"


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` bars, one for each stretch of values (its mean); the lowest value is the lowest bar."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
