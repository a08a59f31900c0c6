"""Which machine, software and commit a measurement was made on: a figure without them means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from coserve.kernels.native import library

Machine = dict[str, Any]


def describe_machine() -> Machine:
    """Flat and JSON-able. `load_average`: the programs that were running when the benchmark started."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native_kernels": library() is not None,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def machine_line(machine: Machine) -> str:
    """The description in one line, to print above a table."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, torch {machine['torch']} with {machine['torch_threads']} threads, "
        f"native kernels {'on' if machine['native_kernels'] else 'off'}; commit {machine['commit']}; "
        f"{machine['date']}, load average {machine['load_average']}"
    )


def _cpu_model() -> str:
    """With family and model numbers, where known: a virtual machine's CPU name may say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    first = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    name = first.get("model name", platform.machine()).strip()
    numbers = [first.get(key, "").strip() for key in ("cpu family", "model")]
    return f"{name} (family {numbers[0]}, model {numbers[1]})" if all(numbers) else name


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _commit() -> str | None:
    """Short hash of this checkout, with "+" where tracked files differ from it.

    Outside a checkout (a copy of one on a lent machine) what COSERVE_COMMIT says, else None.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("COSERVE_COMMIT")


def _git(*arguments: str) -> str:
    here = Path(__file__).resolve().parent
    done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
