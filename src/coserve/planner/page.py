"""What pages and pictures look like: plots in one style, tables, a page that stands alone.

Plots need matplotlib (`pip install coserve[plots]`).
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coserve.errors import InvalidRequest

INK, MUTED, RULE = "#1d2433", "#667085", "#d0d5dd"
COLOURS = ("#2457d6", "#d6502b", "#1b8a5a", "#8a3fc7", "#b8860b", "#0e8fa3", "#c2307a", "#5b6b2d")

Drawing = tuple[str, Callable[[Any], None]]
"""A title, and a function that draws on an axis."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2433;max-width:88rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{margin-top:2.2rem;font-size:1.15rem}
table{border-collapse:collapse;width:100%;font-size:.78rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .4rem;border-bottom:1px solid #d0d5dd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left} th{color:#667085;font-weight:600}
tbody tr:first-child{font-weight:600} .wide{overflow-x:auto} li{font-size:.88rem;color:#475467}
figure{margin:1.6rem 0;break-inside:avoid} figcaption{font-weight:600} svg{width:100%;height:auto}
footer{margin-top:2rem;color:#667085;font-size:.82rem}
@media print{body{max-width:none;margin:0;font-size:11px} table{font-size:8.5px} .wide{overflow:visible}}
"""


def picture(drawings: Sequence[Drawing]) -> bytes:
    """All of them in one PNG. Raises `InvalidRequest` without matplotlib."""
    plt = _pyplot()
    figure, axes = plt.subplots(len(drawings), 1, figsize=(9, 5.2 * len(drawings)), squeeze=False)
    for axis, (title, draw) in zip(axes[:, 0], drawings, strict=True):
        draw(axis)
        _finish(axis, title)
    figure.tight_layout(h_pad=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()


def figures(drawings: Sequence[Drawing], size: tuple[float, float] = (9, 5)) -> list[str]:
    """Each as a figure of a page. Raises `InvalidRequest` without matplotlib."""
    plt = _pyplot()
    pictures = []
    for title, draw in drawings:
        figure, axis = plt.subplots(figsize=size)
        draw(axis)
        _finish(axis, "")
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
        svg = buffer.getvalue()
        pictures.append(f"<figure><figcaption>{title}</figcaption>{svg[svg.index('<svg') :]}</figure>")
    return pictures


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidRequest("plots need matplotlib: pip install 'coserve[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "axes.edgecolor": RULE,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "path",
        }
    )
    return plt


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontweight="bold", pad=22)
    axis.grid(True, color=RULE, linewidth=0.5)
    axis.set_axisbelow(True)


def legend_above(axis: Any) -> None:
    """Where bars cannot hide it."""
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9)


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """A page that needs nothing else; `style` is added to the common one."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}{style}</style>'
        f"<body>{''.join(parts)}</body></html>"
    )


def table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text(value: str) -> str:
    return html.escape(value)


def write(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises `InvalidRequest` if the file cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}", param=path.suffix[1:]) from error
