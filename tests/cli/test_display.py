"""What the display shows for a given state."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from coserve.display import Comparison, JobState, Meter, Shares, State, line, screen, watch
from coserve.display.text import clock, milliseconds, sparkline
from tests.cli.stub import STATS

JOB = JobState(
    id="ftjob-1",
    status="running",
    model="tiny",
    fine_tuned_model="ft:tiny:house:0a1b2c3d",
    step=20,
    total_steps=80,
    losses=(3.0, 2.0, 1.0),
)
STATE = replace(
    Meter("http://127.0.0.1:8000/v1").state(0.0, STATS, model="tiny", job=JOB),
    output_rate=312.4,
    training_rate=1820.0,
)


def shown(state: State, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=False)
    console.print(screen(state))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    "text",
    [
        "tiny",
        "http://127.0.0.1:8000/v1",
        "3 running  1 waiting",
        "42 done",
        "312 tokens/s",
        "12 ms p50  40 ms p99",
        "8.4 ms p50  15 ms p99",
        "running  20/80 steps",
        "1.000 █▅▁",
        "1,820 tokens/s",
        "inference 30 %   ■ training 50 %   ■ idle 20 %",
        "61 % of the bandwidth",
        "predicted 4.2 ms  measured 4.5 ms  median error 6 %",
        "12/512 KV blocks",
        "Test CPU, 20 GB/s, 1,000 GFLOP/s",
    ],
)
def test_the_screen_shows(text):
    assert text in "\n".join(shown(STATE))


@pytest.mark.parametrize("job", [None, JOB, replace(JOB, status="failed", losses=(), message="long " * 99)])
@pytest.mark.parametrize("comparison", [None, Comparison("q " * 99, "base", "a " * 999, "ft:b:c:d", "b\n" * 999)])
def test_the_screen_fits_80_by_24(job, comparison):
    notes = ("a note " * 40,) * 9
    lines = shown(replace(STATE, job=job, comparison=comparison, notes=notes, chip="chip " * 40))
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80


def test_the_screen_of_a_server_that_has_done_nothing():
    text = "\n".join(shown(State()))
    assert "no requests yet" in text
    assert "no fine-tuning job" in text


def test_markup_in_a_clients_text_is_only_text():
    said = Comparison("[red]q[/red]", "base", "[link=x]a", "adapter", "[/b]")
    text = "\n".join(shown(replace(STATE, comparison=said)))
    assert "[red]q[/red]" in text
    assert "[link=x]a" in text


def test_the_bar_gives_each_kind_its_share():
    bar = next(row for row in shown(replace(STATE, shares=Shares.of(3, 5, 2))) if "█████" in row)
    assert bar.count("█") == 80 - 4 - len("time  ")


def test_the_line_says_what_the_screen_says():
    assert line(STATE) == (
        "0:00:10 | requests 3 running 1 waiting 42 done | output 312 tokens/s | TTFT 12 ms/40 ms"
        " | ITL 8.4 ms/15 ms | MBU 61 % | time 30 % inference 50 % training"
        " | training running step 20/80 loss 1.000 1,820 tokens/s"
    )


def test_rates_are_over_the_window():
    meter = Meter("", window=10.0)
    for now in range(30):
        state = meter.state(
            float(now), {**STATS, "steps": now, "output_tokens": 50 * now, "training_seconds": 0.5 * now}
        )
    assert state.output_rate == pytest.approx(50)
    assert state.shares == Shares(0.0, 1.0, 0.0)


def test_a_restarted_server_gives_no_negative_rates():
    meter = Meter("")
    meter.state(0.0, STATS)
    state = meter.state(1.0, {**STATS, "steps": 1, "output_tokens": 3})
    assert state.output_rate == 0.0


def test_without_a_terminal_lines_come_every_few_seconds():
    console = Console(file=io.StringIO(), force_terminal=False)
    states = (replace(STATE, finished=count) for count in range(100))
    last = watch(
        states,
        console,
        until=lambda state: state.finished == 50,
        line_seconds=5.0,
        sleep=lambda seconds: None,
    )
    assert last.finished == 50
    written = console.file.getvalue().splitlines()
    assert len(written) == 4, "at 0, 5 and 10 seconds, and the last state"
    assert "50 done" in written[-1]


def test_on_a_terminal_the_screen_is_redrawn_in_place():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    watch(iter([STATE, STATE]), console, sleep=lambda seconds: None)
    assert "\x1b[1A" in console.file.getvalue()


def test_numbers_read_well():
    assert [milliseconds(s) for s in (None, 0.0004, 0.0123, 2.5)] == ["-", "0.4 ms", "12 ms", "2.5 s"]
    assert clock(3723.9) == "1:02:03"
    assert sparkline([], 8) == ""
    assert sparkline([1.0], 8) == "▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 4) == "█▆▃▁"
