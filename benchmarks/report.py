"""What a benchmark says: progress while it runs, a table for a reader, JSON for a program."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine

Row = dict[str, Any]

_started = time.monotonic()


def progress(text: str) -> None:
    """One line on stderr, with the seconds since the start."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}", file=sys.stderr, flush=True)


def print_table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Aligned for a terminal, and valid Markdown for a page."""
    columns = list(columns or rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    for index, line in enumerate(cells):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    sys.stdout.flush()


def write_json(path: Path, machine: Machine, rows: Sequence[Row], **more: Any) -> None:
    """`{"machine": ..., "rows": [...], **more}`, whole or not at all; what does not exist is null."""
    content = {"machine": machine, "rows": [_finite(row) for row in rows], **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
    part.replace(path)


def medians(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
    """One row for each combination of `keys`, in order of appearance, with the medians of the other figures.

    `round` gives way to `rounds`: how many there were.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        dict(zip(keys, values, strict=True))
        | {"rounds": len(group)}
        | {name: median(row[name] for row in group) for name in group[0] if name not in (*keys, "round")}
        for values, group in groups.items()
    ]


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(known) if known else None


def paired_ratio(rows: Sequence[Row], field: str, ours: Row, theirs: Row) -> float | None:
    """Median over the rounds of `field` in our row over theirs of the same round: what disturbs both cancels.

    `ours` and `theirs` are the keys of a row in each round.
    """
    below = {row["round"]: row[field] for row in rows if theirs.items() <= row.items()}
    pairs = [(row[field], below.get(row["round"])) for row in rows if ours.items() <= row.items()]
    return median(a / b for a, b in pairs if a is not None and b)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _finite(row: Row) -> Row:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
