"""A trace of requests as a load: rate, lengths and how much the busiest minute exceeds the average."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from coserve.errors import InvalidRequest
from coserve.planner.serving import Requests

_TIME = ("TIMESTAMP", "timestamp", "arrival_time", "time")
_PROMPT = ("ContextTokens", "prompt_tokens", "input_tokens", "prompt")
_OUTPUT = ("GeneratedTokens", "completion_tokens", "output_tokens", "output")


@dataclass(frozen=True)
class Trace:
    requests: Requests  # means
    rate: float  # requests a second, on average
    peak: float  # the busiest minute over the average


def read_trace(path: Path) -> Trace:
    """Read a CSV with a time (ISO 8601, or seconds), prompt tokens and output tokens a request: the columns of the
    Azure LLM inference traces, or `timestamp,prompt_tokens,completion_tokens`.

    Raises `InvalidRequest` naming the line or column at fault.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or ()
            columns = [_column(path, names, known) for known in (_TIME, _PROMPT, _OUTPUT)]
            rows = [_row(path, number, row, columns) for number, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {error}", param="trace") from error
    if len(rows) < 2 or max(t for t, _, _ in rows) <= min(t for t, _, _ in rows):
        raise InvalidRequest(f"{path}: a trace needs two requests at different times", param="trace")
    start = min(t for t, _, _ in rows)
    seconds = max(t for t, _, _ in rows) - start
    rate = len(rows) / seconds
    busiest = max(Counter(int((t - start) // 60) for t, _, _ in rows).values()) / min(60.0, seconds)
    requests = Requests(sum(p for _, p, _ in rows) / len(rows), max(1.0, sum(o for _, _, o in rows) / len(rows)))
    return Trace(requests, rate, max(1.0, busiest / rate))


def _column(path: Path, names: object, known: tuple[str, ...]) -> str:
    found = next((name for name in known if name in names), None)  # type: ignore[operator]
    if found is None:
        raise InvalidRequest(f"{path}: no column {' or '.join(known)} in its first line", param="trace")
    return found


def _row(path: Path, line: int, row: dict[str, str], columns: list[str]) -> tuple[float, float, float]:
    try:
        when, prompt, output = (row[column] for column in columns)
        return _seconds(when), float(prompt), float(output)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{path}, line {line}: not a time and two numbers of tokens ({error})", param="trace"
        ) from error


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        whole, _, fraction = text.partition(".")
        return datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction or 0}")
