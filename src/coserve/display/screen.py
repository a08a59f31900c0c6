"""The live screen: a pure function from a state to a rich renderable that fits 80 columns and 24 lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from coserve.display.state import Comparison, JobState, Shares, State
from coserve.display.text import clock, milliseconds, percent, rate, sparkline

INFERENCE, TRAINING, IDLE = "cyan", "magenta", "bright_black"
_NOTES = 4  # lines at most
_BASE_LINES, _ADAPTER_LINES = 2, 5  # of an answer, so that all fits
_NAME = 8  # columns for who answers


def screen(state: State) -> RenderableType:
    """The whole picture: what is served, what is learnt, and how the chip divides its time between them."""
    pair = Table.grid(expand=True)
    pair.add_column(ratio=37)
    pair.add_column(ratio=43)  # room for an adapter's name
    pair.add_row(_panel("inference", _inference(state), INFERENCE), _panel("training", _training(state), TRAINING))
    return Group(
        _header(state),
        pair,
        _panel(f"chip · {state.chip}" if state.chip else "chip", _chip(state), "default"),
        _comparison(state.comparison) if state.comparison else _notes(state.notes),
    )


def _header(state: State) -> RenderableType:
    header = Table.grid(expand=True)
    header.add_column()
    header.add_column(justify="right")
    header.add_row(
        Text.assemble(("coserve ", "bold"), (state.model, "bold cyan"), "  ", state.url),
        Text(f"{clock(state.uptime)}  Ctrl-C stops", style="dim"),
    )
    return header


def _panel(title: str, body: RenderableType, style: str) -> Panel:
    return Panel(body, title=Text(title, style="bold"), title_align="left", border_style=style, box=box.ROUNDED)


def _figures(rows: Iterable[tuple[str, RenderableType]], label: int = 8) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(style="dim", width=label, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _inference(state: State) -> RenderableType:
    requests = Text.assemble((f"{state.running:,}", "bold"), " running  ", (f"{state.waiting:,}", "bold"), " waiting")
    done = Text(f"{state.finished:,} done")
    if state.cancelled:
        done.append(f"  {state.cancelled:,} cancelled", style="dim")
    return _figures(
        [
            ("requests", requests),
            ("", done),
            ("output", _speed(state.output_rate, INFERENCE)),
            ("TTFT", _quantiles(state.ttft_p50, state.ttft_p99)),
            ("ITL", _quantiles(state.itl_p50, state.itl_p99)),
        ]
    )


def _speed(tokens_per_second: float, colour: str) -> Text:
    return Text.assemble((rate(tokens_per_second), f"bold {colour}"), " tokens/s")


def _quantiles(p50: float | None, p99: float | None) -> Text:
    if p50 is None:
        return Text("no requests yet", style="dim")
    return Text.assemble((milliseconds(p50), "bold"), (" p50  ", "dim"), (milliseconds(p99), "bold"), (" p99", "dim"))


def _training(state: State) -> RenderableType:
    job = state.job
    if job is None:
        return Group(Text("no fine-tuning job", style="dim"), *[Text("")] * 4)
    colour = {"succeeded": "green", "failed": "red", "cancelled": "yellow"}.get(job.status, TRAINING)
    steps = f"{job.step:,}/{job.total_steps:,} steps" if job.total_steps else ""
    return _figures(
        [
            ("job", Text.assemble((job.status, f"bold {colour}"), "  ", (steps, "dim"))),
            (
                "",
                ProgressBar(total=1.0, completed=job.progress, complete_style=colour, finished_style=colour),
            ),
            ("loss", _loss(job)),
            ("speed", _speed(state.training_rate, TRAINING)),
            ("model", Text(job.fine_tuned_model or job.model, style="dim")),
        ],
        label=5,
    )


def _loss(job: JobState) -> Text:
    if not job.losses:
        return Text(job.message or "not yet", style="dim")
    text = Text.assemble((f"{job.losses[-1]:.3f}", "bold"), " ", (sparkline(job.losses, 16), TRAINING))
    if job.valid_loss is not None:
        text.append(f" valid {job.valid_loss:.3f}", style="dim")
    return text


def _chip(state: State) -> RenderableType:
    shares = state.shares
    legend = Text.assemble(
        ("■ ", INFERENCE), f"inference {percent(shares.inference)}   ",
        ("■ ", TRAINING), f"training {percent(shares.training)}   ",
        ("■ ", IDLE), f"idle {percent(shares.idle)}",
    )  # fmt: skip
    step = Text.assemble(
        ("predicted ", "dim"), (milliseconds(state.predicted_step), "bold"),
        ("  measured ", "dim"), (milliseconds(state.measured_step), "bold"),
        ("  median error ", "dim"), (percent(state.step_error), "bold"),
    )  # fmt: skip
    memory = Text.assemble(
        (percent(state.mbu), "bold"), (" of the bandwidth while decoding   ", "dim"),
        (f"{state.kv_used:,}/{state.kv_total:,}", "bold"), (" KV blocks", "dim"),
    )  # fmt: skip
    return _figures([("time", ShareBar(shares)), ("", legend), ("step", step), ("MBU", memory)], label=5)


class ShareBar:
    """One bar in three colours, as wide as there is room."""

    def __init__(self, shares: Shares):
        self.shares = shares

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        first = round(self.shares.inference * width)
        second = round((self.shares.inference + self.shares.training) * width)
        for cells, colour in ((first, INFERENCE), (second - first, TRAINING), (width - second, IDLE)):
            yield Segment("█" * cells, Style.parse(colour))
        yield Segment.line()


def _comparison(said: Comparison) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(style="dim", no_wrap=True, width=_NAME, overflow="ellipsis")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_row(said.base, Text(_clipped(said.base_answer, _BASE_LINES), style=INFERENCE))
    table.add_row("adapter", Text(_clipped(said.adapter_answer, _ADAPTER_LINES), style=TRAINING))
    return _panel(f"before and after: {said.question}", table, "green")


def _clipped(text: str, lines: int) -> str:
    """The text's first lines, wrapped to what the panel has room for."""
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(line, 80 - 4 - _NAME - 2)]
    return ("\n".join(wrapped[:lines]) or "(nothing)") + ("…" if len(wrapped) > lines else "")


def _notes(notes: tuple[str, ...]) -> RenderableType:
    return Group(*(Text(note, no_wrap=True, overflow="ellipsis") for note in notes[-_NOTES:]))
