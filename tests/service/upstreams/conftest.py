"""Two upstreams that misbehave on demand, a gateway in front of them, and OpenAI's own client."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from coserve.service import Server
from coserve.service.no_engine import NO_TRAINING, no_engine
from coserve.service.settings import Settings
from tests.service.conftest import KEY, openai_client
from tests.service.upstreams.faulty import FaultyServer

UPSTREAM_KEY = "sk-of-the-upstream"
TIMEOUT = {"connect": 0.5, "first_token": 0.3, "idle": 0.3, "whole": 0.5}
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def one() -> Iterator[FaultyServer]:
    server = FaultyServer()
    yield server
    server.close()


@pytest.fixture
def two() -> Iterator[FaultyServer]:
    server = FaultyServer()
    yield server
    server.close()


@dataclass
class Gateway:
    server: Server
    client: openai.OpenAI
    http: httpx.Client

    def text(self, *, stream: bool, **more: Any) -> str:
        """What the model says to Hi."""
        if not stream:
            return self.client.chat.completions.create(model="m", messages=HELLO, **more).choices[0].message.content
        chunks = self.client.chat.completions.create(model="m", messages=HELLO, stream=True, **more)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def state(self, upstream: str = "one") -> dict[str, Any]:
        return self.http.get("/coserve/upstreams").json()[upstream]

    def rows(self, count: int = 1) -> list[dict[str, Any]]:
        return usage_rows(self.server, count)


def usage_rows(server: Server, count: int) -> list[dict[str, Any]]:
    """A server's ledger, oldest first, as soon as it has so many rows."""
    for _ in range(200):
        rows = _rows(server)
        if len(rows) >= count:
            break
        time.sleep(0.02)
    assert len(rows) == count
    return rows


def _rows(server: Server) -> list[dict[str, Any]]:
    with sqlite3.connect(server._settings.directory / "coserve.db") as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("select * from usage order by created_at, rowid")]


Start = Callable[..., Gateway]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(upstreams, models): a gateway. An upstream is a URL or its whole configuration."""
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM_KEY)
    running: list[Gateway] = []

    def starting(upstreams: dict[str, Any], model: dict[str, Any] | None = None, **settings: Any) -> Gateway:
        whole = {name: config(value) for name, value in upstreams.items()}
        file = tmp_path / "upstreams.yaml"
        file.write_text(yaml.safe_dump({"upstreams": whole, "models": {"m": model or {"via": list(upstreams)}}}))
        options = {"home": tmp_path / "home", "port": 0, "api_key": KEY, "drain_seconds": 1, "upstreams": file}
        engine = settings.pop("engine", None)
        training = settings.pop("training", NO_TRAINING)
        server = Server(Settings(**{**options, **settings}), lambda: engine or no_engine(), training=training)
        server.start()
        headers = {"authorization": f"Bearer {KEY}"}
        http = httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False)
        running.append(Gateway(server, openai_client(server), http))
        return running[-1]

    yield starting
    for gateway in running:
        gateway.client.close()
        gateway.http.close()
        gateway.server.stop()


def config(value: Any) -> dict[str, Any]:
    said = {"base_url": value} if isinstance(value, str) else value
    return {"api_key_env": "UPSTREAM_KEY", "timeout": TIMEOUT, **said}


def events(text: str) -> list[Any]:
    """A stream's JSON."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)
