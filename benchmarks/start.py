"""From a command to the first token: `coserve serve` over HTTP, and `Engine.from_pretrained` in a fresh process.

Every start is a new process; the disk is warm, the quantised weights and the chip's measurement are kept from a first
start that does not count. Over HTTP, `command` is the time until `coserve serve` says that it loads, `serving` the time
from there until it answers, `first token` that of a streamed completion of one token. From Python, `imports` is the
interpreter's start with `coserve.Engine`; the engine's own parts are those of `benchmarks.start_worker`. `total` is all
of it, seen from outside.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import LLAMA_1B, BenchmarkModel, cache_directory, find_models
from benchmarks.options import benchmark_parser
from benchmarks.processes import ended
from benchmarks.report import Row, medians, print_table, progress, write_json
from benchmarks.start_worker import PROMPT, SUM

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("model", "weights", "way", "part")
HTTP, PYTHON, TOTAL = "http", "python", "total"
_TIMEOUT = 300.0  # seconds; a first start quantises


def over_http(path: Path, weights: str, home: Path) -> dict[str, float]:
    """Seconds of a start of `coserve serve`, by part."""
    key = f"sk-cs-{secrets.token_urlsafe(32)}"
    command = [sys.executable, "-m", "coserve.cli", "serve", str(path), "--weights", weights]
    options = ["--home", str(home), "--port", "0", "--name", "served", "--log-level", "error"]
    environment = {**os.environ, "COSERVE_API_KEY": key}
    begun = time.perf_counter()
    with ended(subprocess.Popen([*command, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE)) as server:
        _line_of(server, "coserve ")
        loading = time.perf_counter()
        url = _line_of(server, "serving ").split()[-1]
        serving = time.perf_counter()
        _await_token(url, key)
        end = time.perf_counter()
    parts = {"command": loading - begun, "serving": serving - loading, "first token": end - serving}
    return parts | {TOTAL: end - begun}


def from_python(path: Path, weights: str, home: Path) -> dict[str, float]:
    """Seconds of a start of the engine in a process of its own, by part."""
    command = [sys.executable, "-m", "benchmarks.start_worker", str(path), weights, str(home)]
    begun = time.perf_counter()
    with ended(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        total = time.perf_counter() - begun
    if not said:
        raise SystemExit(f"{' '.join(command)} has failed")
    parts: dict[str, float] = json.loads(said)
    within = sum(seconds for part, seconds in parts.items() if part != SUM)
    return {"imports": total - within, **parts, TOTAL: total}


def _line_of(server: subprocess.Popen[bytes], beginning: str) -> str:
    """The next line that a server prints which begins so. Raises `SystemExit` if it ends before."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(beginning.encode()):
            return line.decode().strip()
    raise SystemExit("coserve serve did not start; what it said is above")


def _await_token(url: str, key: str) -> None:
    """Stream a completion until the first event. Raises `SystemExit` for a reply that is not 200."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=_TIMEOUT)
    body = json.dumps({"model": "served", "prompt": PROMPT, "max_tokens": 1, "stream": True})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", f"{address.path}/completions", body, headers)
    reply = connection.getresponse()
    first = reply.readline()
    if reply.status != 200 or not first.startswith(b"data: {"):
        raise SystemExit(f"no token: {reply.status} {first.decode(errors='replace')}")
    connection.close()


WAYS: dict[str, Callable[[Path, str, Path], dict[str, float]]] = {HTTP: over_http, PYTHON: from_python}


def measure(model: BenchmarkModel, options: argparse.Namespace) -> list[Row]:
    """All formats and ways in turn, round by round."""
    home = options.home
    for weights in options.weights:
        progress(f"{model.name}, {weights}: a first start, which does not count")
        over_http(model.path, weights, home)
    rows: list[Row] = []
    for number in range(1, options.rounds + 1):
        for weights in options.weights:
            for way in options.ways:
                parts = WAYS[way](model.path, weights, home)
                keys = {"model": model.name, "weights": weights, "way": way, "round": number}
                rows += [keys | {"part": part, "seconds": seconds} for part, seconds in parts.items()]
                shown = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
                progress(f"{model.name}, {weights}, {way}, round {number}: {shown}")
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Medians, and the best: what a start takes where nothing else runs."""
    table = medians(rows, KEYS)
    for shown in table:
        shown["best"] = min(row["seconds"] for row in rows if all(row[key] == shown[key] for key in KEYS))
    return table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser("start", __doc__.split("\n")[0], (LLAMA_1B,))
    parser.add_argument("--weights", nargs="+", default=["int8", "int4", "bf16"], metavar="FORMAT")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY", help="http, python")
    parser.add_argument(
        "--home", type=Path, default=cache_directory() / "start", metavar="DIR", help="keeps the quantised weights"
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 7)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options, machine = parse(arguments), describe_machine()
    progress(machine_line(machine))
    rows = [row for model in find_models(options.model) for row in measure(model, options)]
    table = summary(rows)
    print(f"\n{machine_line(machine)}\n")
    print_table(table)
    print("\nSeconds: medians, and the best of all rounds. sum (the check of quantised matrices) is a part of weights.")
    if options.json:
        write_json(options.json, machine, table, every_round=rows)


if __name__ == "__main__":
    main()
