"""A report as one page that stands alone, and as a picture (which needs matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coserve.errors import InvalidRequest
from coserve.planner.page import COLOURS, INK, RULE, Drawing, figures, legend_above, page, picture, table, text, write
from coserve.service.money import usd
from coserve.service.report import rows
from coserve.service.report.data import Report, Use

INFERENCE, TRAINING, IDLE = COLOURS[0], COLOURS[2], RULE
SHOWN = 10
"""Bars in a plot; the table has all."""

_STYLE = """
body{max-width:60rem} table{font-size:.85rem} tbody tr:first-child{font-weight:400}
tbody tr:last-child{font-weight:600} tbody tr:last-child td{border-top:2px solid #98a2b3;border-bottom:none}
.verdict{font-weight:600} .when{color:#667085;margin-top:0} h1{margin-bottom:0}
@media print{h2{break-after:avoid} table{break-inside:avoid;font-size:9.5px}}
"""


def write_png(report: Report, path: Path) -> None:
    """Raises `InvalidRequest` without matplotlib, or if there is nothing to show."""
    drawings = _drawings(report)
    if not drawings:
        raise InvalidRequest("nothing was used in this time: there is nothing to plot", param="png")
    write(path, picture(drawings))


def write_html(report: Report, path: Path) -> None:
    """Without matplotlib, the page has its tables only. Raises `InvalidRequest` if it cannot be written."""
    pictures = figures(_drawings(report), size=(9, 3.6)) if find_spec("matplotlib") else []
    write(path, _page(report, pictures).encode())


def _page(report: Report, pictures: Sequence[str]) -> str:
    title = f"Usage, revenue and cost, {rows.time(report.start)} to {rows.time(report.end)}"
    *lines, verdict = rows.headline(report)
    parts = [
        "<h1>Usage, revenue and cost</h1>",
        f'<p class="when">From {rows.time(report.start)} to {rows.time(report.end)}, UTC</p>',
        f"<p>{'<br>'.join(text(line) for line in lines)}</p>",
        f'<p class="verdict">{text(verdict)}</p>',
    ]
    for name, columns, cells in rows.tables(report):
        parts += [f"<h2>{text(name)}</h2>", table(columns, cells)]
    parts += ["<h2>Pictures</h2>", *pictures] if pictures else []
    parts.append(
        "<footer>By coserve report. Tokens are those that were delivered; cached ones are part of the input. Revenue "
        "is the sum of the bill's rows, each rounded to a billionth of a dollar. Chips cost their recorded seconds "
        "at their price an hour, whatever they did; upstreams cost their tokens at their prices.</footer>"
    )
    return page(title, parts, _STYLE)


def _drawings(report: Report) -> list[Drawing]:
    found: list[Drawing] = []
    if report.days:
        found.append(("Revenue a day", partial(_revenue, report)))
    if report.chip_days:
        found.append(("What the chips' hours went to", partial(_chips, report)))
    if report.whole.revenue:
        found.append(("Revenue by project", partial(_bars, report.projects)))
    return found


def _when(day: int) -> datetime:
    return datetime.fromtimestamp(day, UTC)


def _days_axis(report: Report, axis: Any) -> None:
    """The whole time, days readable."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    half = 43_200
    first = min([day for day, _ in (*report.days, *report.chip_days)], default=report.start)
    last = max([day for day, _ in (*report.days, *report.chip_days)], default=report.end)
    axis.set_xlim(_when(first - half - half // 4), _when(last + half + half // 4))
    locator = AutoDateLocator(minticks=2, maxticks=12)
    locator.intervald[3] = [1, 2, 3, 7, 14]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _revenue(report: Report, axis: Any) -> None:
    days = [_when(day) for day, _ in report.days]
    inference = [usd(use.inference_revenue) for _, use in report.days]
    training = [usd(use.training_revenue) for _, use in report.days]
    axis.bar(days, inference, color=INFERENCE, width=0.8, label="inference")
    axis.bar(days, training, bottom=inference, color=TRAINING, width=0.8, label="training")
    costs = [(_when(day), usd(use.cost)) for day, use in report.chip_days if use.cost is not None]
    if costs:
        axis.plot(*zip(*costs, strict=True), color=INK, linewidth=1.4, marker=".", label="cost of the chips")
    axis.set_ylabel("USD")
    _days_axis(report, axis)
    legend_above(axis)


def _chips(report: Report, axis: Any) -> None:
    days = [_when(day) for day, _ in report.chip_days]
    bottom = [0.0] * len(days)
    for label, colour in (("inference", INFERENCE), ("training", TRAINING), ("idle", IDLE)):
        hours = [getattr(use, label) / 3600 for _, use in report.chip_days]
        axis.bar(days, hours, bottom=bottom, color=colour, width=0.8, label=label)
        bottom = [below + more for below, more in zip(bottom, hours, strict=True)]
    axis.set_ylabel("hours of chips")
    _days_axis(report, axis)
    legend_above(axis)


def _bars(uses: Sequence[Use], axis: Any) -> None:
    shown = [use for use in uses[:SHOWN] if use.revenue][::-1]
    names = [use.name for use in shown]
    inference = [usd(use.inference_revenue) for use in shown]
    axis.barh(names, inference, color=INFERENCE, height=0.6, label="inference")
    training = [usd(use.training_revenue) for use in shown]
    axis.barh(names, training, left=inference, color=TRAINING, height=0.6, label="training")
    axis.set_xlabel("USD")
    axis.margins(x=0.05)
    legend_above(axis)
