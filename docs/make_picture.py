"""Makes docs/images/up.svg: what `coserve up --demo-load` shows, drawn from the real server while it trains.

coserve up --demo-load          # in one terminal
python docs/make_picture.py     # in another, while the job runs
"""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

from rich.console import Console

from coserve.address import find_server
from coserve.cli.observer import Observer
from coserve.cli.options import home_directory
from coserve.client import Client
from coserve.display import State, screen

PICTURE = Path(__file__).parent / "images" / "up.svg"
SECONDS = 10.0  # of watching first: rates need some time to be rates of


def watched() -> State:
    """The running server's state, and its job's, after some seconds of watching."""
    with Client(find_server(home_directory(None))) as client:
        observer = Observer(client, follow_latest=True)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            observer.look()
            time.sleep(0.25)
        return observer.look()


def drawn(state: State) -> str:
    """The screen as SVG, with the reader's own monospaced font."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(screen(state))
    svg = console.export_svg(title="coserve up --demo-load")
    return re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg).replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    os.environ.pop("NO_COLOR", None)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(watched()), encoding="utf-8")
    print(PICTURE)
