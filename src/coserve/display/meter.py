"""From totals to rates: successive snapshots of a server become states to show."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from coserve.display.state import Comparison, JobState, Shares, State

Stats = Mapping[str, Any]
KINDS = ("inference", "training", "idle")  # of time; together they are all the time since the engine's start


class Meter:
    """Remembers the snapshots of the last `window` seconds; rates and shares are taken over those."""

    def __init__(self, url: str, window: float = 8.0):
        self.url = url
        self.window = window
        self._seen: deque[tuple[float, Stats]] = deque()

    def state(
        self,
        now: float,
        stats: Stats,
        *,
        model: str = "",
        job: JobState | None = None,
        notes: tuple[str, ...] = (),
        comparison: Comparison | None = None,
    ) -> State:
        """The state at `now` (a monotonic clock's seconds). `stats` is `EngineStats` as a dictionary."""
        self._remember(now, stats)
        return State(
            url=self.url,
            model=model,
            uptime=sum(stats[f"{kind}_seconds"] for kind in KINDS),
            running=int(stats["requests_running"]),
            waiting=int(stats["requests_waiting"]),
            finished=int(stats["requests_finished"]),
            cancelled=int(stats["requests_cancelled"]),
            output_tokens=int(stats["output_tokens"]),
            output_rate=self._rate("output_tokens"),
            training_rate=self._rate("training_tokens"),
            ttft_p50=stats.get("recent_ttft_p50"),
            ttft_p99=stats.get("recent_ttft_p99"),
            itl_p50=stats.get("recent_itl_p50"),
            itl_p99=stats.get("recent_itl_p99"),
            shares=Shares.of(*(self._delta(f"{kind}_seconds") for kind in KINDS)),
            mbu=stats.get("mbu") or None,
            predicted_step=stats.get("predicted_step_seconds") or None,
            measured_step=stats.get("measured_step_seconds") or None,
            step_error=stats.get("step_error_median"),
            kv_used=int(stats["kv_blocks_used"]),
            kv_total=int(stats["kv_blocks_total"]),
            chip=_chip(stats),
            job=job,
            notes=notes,
            comparison=comparison,
        )

    def _remember(self, now: float, stats: Stats) -> None:
        if self._seen and stats["steps"] < self._seen[-1][1]["steps"]:
            self._seen.clear()  # the server was started anew
        self._seen.append((now, stats))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self.window:
            self._seen.popleft()

    def _delta(self, name: str) -> float:
        first, last = self._seen[0][1], self._seen[-1][1]
        if first is last:  # nothing to compare with yet: since the start
            return float(last[name])
        return max(0.0, last[name] - first[name])

    def _rate(self, name: str) -> float:
        seconds = self._seen[-1][0] - self._seen[0][0]
        return self._delta(name) / seconds if seconds > 0 else 0.0


def _chip(stats: Stats) -> str:
    """The chip in words: its name, bandwidth and FLOP/s, as far as they are told."""
    parts = [str(stats.get("chip", ""))]
    if bandwidth := stats.get("chip_bandwidth"):
        parts.append(f"{bandwidth / 1e9:,.0f} GB/s")
    if flops := stats.get("chip_flops"):
        parts.append(f"{flops / 1e9:,.0f} GFLOP/s")
    return ", ".join(part for part in parts if part)
