"""What the door costs: keys, limits and ledger of `coserve gateway`, beside LiteLLM's proxy, before one null upstream.

`direct` is the upstream itself. Added TTFT is measured with streams whose upstream takes its time (so that nothing but
the door's own work is added), requests a second with short replies at once. Each server has one worker; they are
measured in turn, several rounds. LiteLLM runs with a master key and without a database: it counts and bills nothing.
Figures depend on the load generator's share of the same two cores.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.http_load import Target, closed_loop
from benchmarks.machine import describe_machine, machine_line
from benchmarks.options import positive, seconds
from benchmarks.processes import ended
from benchmarks.report import Row, medians, print_table, progress, write_json

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("server", "concurrency")
FIRST_TOKEN_MS, TOKEN_MS = 100, 10
SHORT_CONCURRENCY = 32
PAUSE = 0.1
"""Seconds at most between a stream's end and the next request on its connection."""
_START_SECONDS = 120.0
_MESSAGES = [{"role": "user", "content": "Say a few words, please."}]
STREAM = json.dumps({"model": "null", "messages": _MESSAGES, "stream": True, "max_tokens": 16}).encode()
SHORT = json.dumps({"model": "null", "messages": _MESSAGES, "max_tokens": 16}).encode()
_LIMITS = """tiers:
  enterprise:
    priority: 20
    requests_per_minute: 1000000000
    requests_per_day: 1000000000
    tokens_per_minute: 1000000000000
    tokens_per_day: 1000000000000
    concurrent_requests: 100000
    price: {input: 0.2, cached_input: 0.1, output: 0.8}
"""


@dataclass(frozen=True)
class Door:
    port: int
    key: str


@dataclass(frozen=True)
class Server:
    """Started twice: in front of the slow upstream, and of the one that answers at once."""

    name: str
    slow: Door
    fast: Door


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def process(command: Sequence[str], port: int, path: str, key: str, **environment: str) -> Iterator[None]:
    """Run a command until its port answers, and to the end of the block."""
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
        with ended(started) as running:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(port, path, key):
                if running.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield


def _answers(port: int, path: str, key: str) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5):
            return True
    except OSError:
        return False


def start_upstream(stack: ExitStack, first_ms: int, token_ms: int) -> int:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.null_upstream", str(port), str(first_ms), str(token_ms)]
    stack.enter_context(process(command, port, "/v1/models", ""))
    return port


def start_coserve(stack: ExitStack, folder: Path, upstream: int) -> tuple[int, str]:
    """With all limits set, so that all of them are counted."""
    home, port, key = folder / f"coserve-{upstream}", free_port(), f"sk-cs-{secrets.token_urlsafe(32)}"
    home.mkdir()
    (home / "tiers.yaml").write_text(_LIMITS)
    (home / "upstreams.yaml").write_text(
        f"upstreams:\n  null-upstream:\n    base_url: http://127.0.0.1:{upstream}/v1\n    api_key_env: NULL_KEY\n"
        "models:\n  'null':\n    via: [null-upstream]\n"
    )
    command = [sys.executable, "-m", "coserve.cli", "gateway", "--home", str(home), "--port", str(port)]
    stack.enter_context(process(command, port, "/v1/models", key, COSERVE_API_KEY=key, NULL_KEY="none"))
    return port, key


def start_litellm(stack: ExitStack, folder: Path, upstream: int, litellm: str) -> tuple[int, str]:
    port, key = free_port(), f"sk-{secrets.token_urlsafe(32)}"
    config = folder / f"litellm-{upstream}.yaml"
    config.write_text(
        "model_list:\n  - model_name: 'null'\n    litellm_params:\n      model: openai/null\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
        f"general_settings:\n  master_key: {key}\nlitellm_settings:\n  telemetry: false\n"
    )
    command = [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    stack.enter_context(process(command, port, "/v1/models", key, **quiet))
    return port, key


def start_all(stack: ExitStack, folder: Path, litellm: str | None) -> list[Server]:
    slow, fast = start_upstream(stack, FIRST_TOKEN_MS, TOKEN_MS), start_upstream(stack, 0, 0)
    servers = [Server("direct", Door(slow, "none"), Door(fast, "none"))]
    progress("starting coserve gateway")
    ours = [start_coserve(stack, folder, upstream) for upstream in (slow, fast)]
    servers.append(_server("coserve", ours))
    if litellm is None:
        progress(
            "litellm is not installed (its own environment: pip install 'litellm[proxy]', --litellm PATH): left out"
        )
        return servers
    progress("starting litellm")
    theirs = [start_litellm(stack, folder, upstream, litellm) for upstream in (slow, fast)]
    return [*servers, _server("litellm", theirs)]


def _server(name: str, started: Sequence[tuple[int, str]]) -> Server:
    (slow, slow_key), (fast, fast_key) = started
    return Server(name, Door(slow, slow_key), Door(fast, fast_key))


def measure(server: Server, concurrency: int, length: float) -> Row:
    """TTFT of slow streams."""
    streams = asyncio.run(
        closed_loop(Target(server.slow.port, server.slow.key, STREAM), concurrency, length, 1.0, PAUSE)
    )
    p50, p99 = np.percentile(streams.ttft, [50, 99])
    return {"ttft_ms_p50": 1e3 * float(p50), "ttft_ms_p99": 1e3 * float(p99)}


def throughput(server: Server, length: float) -> float:
    """Short replies a second."""
    target = Target(server.fast.port, server.fast.key, SHORT)
    short = asyncio.run(closed_loop(target, SHORT_CONCURRENCY, length, 1.0))
    return short.replies / short.seconds


def one_round(servers: Sequence[Server], number: int, options: argparse.Namespace) -> list[Row]:
    """Every server in turn; added is over the direct one's of the same round."""
    rows: list[Row] = []
    for concurrency in options.concurrency:
        direct = measure(servers[0], concurrency, options.seconds)
        for server in servers:
            found = direct if server is servers[0] else measure(server, concurrency, options.seconds)
            row: Row = {"server": server.name, "concurrency": concurrency, "round": number}
            row |= {f"added_{name}": found[name] - direct[name] for name in found} | found
            row["requests_per_s"] = throughput(server, options.seconds)
            progress(
                f"round {number}, {server.name}, {concurrency} streams: {row['added_ttft_ms_p50']:+.2f} ms p50, "
                f"{row['added_ttft_ms_p99']:+.2f} ms p99, {row['requests_per_s']:.0f} requests/s"
            )
            rows.append(row)
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: one short round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument("--rounds", type=positive, metavar="N", help="how often everything is run, in turn")
    parser.add_argument("--seconds", type=seconds, metavar="S", help="of each run")
    parser.add_argument("--concurrency", type=positive, nargs="+", default=[16], metavar="N", help="streams at once")
    parser.add_argument(
        "--litellm", default=shutil.which("litellm"), metavar="COMMAND", help="LiteLLM's proxy; default: from PATH"
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (3.0 if options.quick else 10.0)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options, machine = parse(arguments), describe_machine()
    progress(machine_line(machine))
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = start_all(stack, folder, options.litellm)
        for number in range(1, options.rounds + 1):
            rows += one_round(servers, number, options)
    print(f"\n{machine_line(machine)}\n")
    found = medians(rows, KEYS)
    print_table(found, [*KEYS, "added_ttft_ms_p50", "added_ttft_ms_p99", "requests_per_s"])
    print(f"\nMedians of {options.rounds} rounds; requests/s at {SHORT_CONCURRENCY} connections, short replies.")
    if options.json:
        write_json(options.json, machine, found, every_round=rows)


if __name__ == "__main__":
    main()
