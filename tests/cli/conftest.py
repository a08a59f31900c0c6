from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coserve.cli import app
from tests.cli.stub import KEY, Stub, stub_server

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line with a home of its own and none of the caller's settings."""
    for name in ("COSERVE_URL", "COSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COSERVE_HOME", str(tmp_path / "home"))

    def run(*arguments: str | Path, input: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)

    return run


@pytest.fixture
def server(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A stub that commands find through the environment."""
    with stub_server() as stub:
        monkeypatch.setenv("COSERVE_URL", f"{stub.url}/v1")
        monkeypatch.setenv("COSERVE_API_KEY", KEY)
        yield stub
