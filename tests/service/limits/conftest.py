"""The three stores, each behind its URL."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["memory", "redis", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Of an empty store; None: in memory."""
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest):
    """A server that can be stopped, and the URL of an empty store on it. It runs again afterwards."""
    url = request.getfixturevalue(f"{request.param}_url")
    server, _ = request.getfixturevalue(f"{request.param}_server")
    yield server, url
    if server.process is None:
        server.start()
