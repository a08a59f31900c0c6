"""What else ran on this machine meanwhile: on a shared one, a figure says little without it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_GLANCE = 0.5  # seconds


@dataclass(frozen=True)
class Others:
    """Counts the processor time of processes other than our own; Linux only."""

    own: tuple[int, ...]  # process ids

    @classmethod
    def than(cls, children: Iterable[int]) -> Others:
        return cls((os.getpid(), *children))

    def look(self) -> tuple[float, float] | None:
        """The time, and the seconds of processor time that others have had; None where the system does not tell."""
        try:
            # user, nice, system; irq, softirq and steal
            total = [int(part) for part in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
            ours = sum(sum(map(int, _after_name(process)[11:13])) for process in self.own)  # utime, stime
        except (OSError, ValueError):
            return None
        return time.perf_counter(), (sum(total) - total[3] - total[4] - ours) / os.sysconf("SC_CLK_TCK")

    def wait_for_quiet(self, cores: float, patience: float) -> None:
        """Until others keep fewer cores busy, at most for so many seconds."""
        end = time.perf_counter() + patience
        while time.perf_counter() < end:
            before = self.look()
            time.sleep(_GLANCE)
            if (cores_between(before, self.look()) or 0.0) <= cores:
                return


def cores_between(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """How many cores others kept busy between two looks."""
    if before is None or after is None:
        return None
    return max(0.0, after[1] - before[1]) / (after[0] - before[0])


def _after_name(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, a name in brackets, may hold spaces."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
