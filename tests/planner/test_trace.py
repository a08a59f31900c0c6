"""Traces of requests, and quantities as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coserve.errors import InvalidRequest
from coserve.planner.quantities import seconds, tokens
from coserve.planner.trace import read_trace


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_the_azure_layout(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:56.6805900,396,109\n2023-11-16 18:18:46.6805900,10,3\n",
    )
    trace = read_trace(path)
    assert trace.rate == pytest.approx(3 / 180)
    assert trace.requests.prompt == 260 and trace.requests.output == 52
    assert trace.peak == pytest.approx(2 / 60 / (3 / 180))


def test_seconds_and_openais_words(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "timestamp,prompt_tokens,completion_tokens\n0,10,20\n10,30,40\n"))
    assert (trace.rate, trace.requests.prompt, trace.requests.output, trace.peak) == (0.2, 20, 30, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column TIMESTAMP or"),
        ("timestamp,prompt_tokens,completion_tokens\n0,10,20\n", "needs two requests"),
        ("timestamp,prompt_tokens,completion_tokens\n0,10,20\n1,x,20\n", "line 3: not a time and two numbers"),
        ("timestamp,prompt_tokens,completion_tokens\n0,10\n", "line 2: not a time"),
    ],
)
def test_bad_traces_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_trace(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        read_trace(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "value"), [("25ms", 0.025), ("2 s", 2), ("24h", 86400), ("1.5min", 90), ("7d", 604800)]
)
def test_times(text: str, value: float) -> None:
    assert seconds(text, "ttft") == pytest.approx(value)


@pytest.mark.parametrize("text", ["25", "ms", "-1s", "2 weeks", ""])
def test_a_time_needs_its_unit(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"itl: .* is not a time such as"):
        seconds(text, "itl")


@pytest.mark.parametrize(
    ("text", "value"),
    [("5B", (5e9, None)), ("50M/day", (5e7, 86400.0)), ("2e6", (2e6, None)), ("1.5k/h", (1500.0, 3600.0))],
)
def test_tokens(text: str, value: tuple) -> None:
    assert tokens(text, "train-tokens") == value


@pytest.mark.parametrize("text", ["5X", "M", "5M/year", "-5M"])
def test_tokens_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a number of tokens"):
        tokens(text, "train-tokens")
