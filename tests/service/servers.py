"""Real Redis and PostgreSQL servers on free ports of this machine, for the tests that need one.

Where a server's program is not installed its tests are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

PATIENCE = 60  # seconds that a server may take to start or to stop


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalServer:
    """A server's process: started, killed and started again on the same port and folder."""

    def __init__(self, command: list[str], answers: Callable[[], bool], **popen: Any):
        self._command = command
        self._answers = answers
        self._popen = popen
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._popen
        )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self.process.poll() is None, f"{self._command[0]} ended at once"
            assert time.monotonic() < deadline, f"{self._command[0]} does not answer"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT is a crash to PostgreSQL."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            self.process = None


@pytest.fixture(scope="session")
def redis_server() -> Iterator[tuple[LocalServer, str]]:
    """The server and its URL."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: nothing is tested on Redis")
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"

    def answers() -> bool:
        try:
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:
            return False

    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", tempfile.gettempdir()]
    server = LocalServer(command, answers)
    server.start()
    yield server, url
    server.stop(signal.SIGKILL)


@pytest.fixture
def redis_url(redis_server: tuple[LocalServer, str]) -> str:
    """An empty Redis."""
    _, url = redis_server
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


def postgres_programs() -> Path | None:
    """The folder of `postgres`, `initdb` and `psql`; Debian keeps them off the path."""
    on_path = shutil.which("postgres")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), *([Path(on_path).resolve()] if on_path else [])]
    folders = [program.parent for program in found if (program.parent / "initdb").exists()]
    return folders[0] if folders else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[tuple[LocalServer, str]]:
    """The server and the URL of its database `postgres`. It runs as the user `postgres` if we are root."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed: nothing is tested on PostgreSQL")
    as_user: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        as_user |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder = tempfile.mkdtemp(prefix="coserve-postgres-")
    port = free_port()
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        initdb = [programs / "initdb", "-D", folder, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **as_user)
        options = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder}
        command = [str(programs / "postgres"), "-D", folder, *(f"--{name}={value}" for name, value in options.items())]
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        server = LocalServer(command, lambda: subprocess.run(ready).returncode == 0, **as_user)
        server.start()
        yield server, f"postgresql://postgres@127.0.0.1:{port}/postgres"
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: tuple[LocalServer, str]) -> str:
    """An empty database."""
    _, url = postgres_server
    psql(url, "SET client_min_messages = error; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url


def psql(url: str, statement: str) -> str:
    """What a statement prints: rows by lines, columns by bars."""
    programs = postgres_programs()
    assert programs is not None
    command = [programs / "psql", url, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
