"""A real server on a free port around the fake engine, and clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from coserve.service import Server, Settings
from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import TRAINING
from tests.service.servers import postgres_server, postgres_url, redis_server, redis_url  # noqa: F401

KEY = "sk-cs-a-key-for-tests"


def start(home: Path, engine: FakeEngine | None = None, **settings: object) -> Server:
    settings = {"port": 0, "api_key": KEY, "drain_seconds": 1, **settings}
    server = Server(Settings(home=home, **settings), lambda: engine or FakeEngine(), training=TRAINING)
    server.start()
    return server


def openai_client(server: Server, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    server = start(home, max_body_bytes=100_000, max_file_bytes=200_000)
    yield server
    server.stop()


@pytest.fixture
def engine(server: Server) -> FakeEngine:
    """The server's engine, answering as at first."""
    engine = server.engine
    engine.answer, engine.delay, engine.fail_after = "Hello, world!", 0.0, None
    engine.requests.clear()
    engine.cancelled.clear()
    return engine


@pytest.fixture
def client(server: Server, engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with openai_client(server) as client:
        yield client


@pytest.fixture
def http(server: Server, engine: FakeEngine) -> Iterator[httpx.Client]:
    """Raw HTTP with a valid key."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False) as http:
        yield http
