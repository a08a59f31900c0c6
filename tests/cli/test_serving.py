"""`serve` and `up` as a user runs them: real processes, a real engine, a tiny checkpoint."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.make_house_style import HEADLINES, SIGNATURE
from tests.tiny import tiny_checkpoint

COSERVE = (sys.executable, "-m", "coserve.cli")
PATIENCE = 120.0  # seconds, for machines that are busy with something else


class Process:
    """A serving command, and what it has printed so far."""

    def __init__(self, output: Path, process: subprocess.Popen[bytes]):
        self._output = output
        self.process = process

    @property
    def printed(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def wait_for(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """The first match in what is printed. Fails if the process ends, or after a long time, without it."""
        until = time.monotonic() + patience
        while not (match := re.search(pattern, self.printed)):
            assert self.process.poll() is None, self.printed
            assert time.monotonic() < until, self.printed
            time.sleep(0.1)
        return match

    def interrupt(self) -> int:
        """Ctrl-C, as a terminal sends it: to the process and its companion. Returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COSERVE_")}
    return {**clean, "COSERVE_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


@contextmanager
def running(tmp_path: Path, environment: dict[str, str], *arguments: str | Path) -> Iterator[Process]:
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*COSERVE, *map(str, arguments), "--port", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Process(output, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def coserve(environment: dict[str, str], *arguments: str) -> str:
    return subprocess.run(
        [*COSERVE, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=PATIENCE
    ).stdout


def test_a_served_directory_answers_and_ctrl_c_ends_it(checkpoint, tmp_path, environment):
    with running(tmp_path, environment, "serve", checkpoint, "--dtype", "float32") as server:
        url = server.wait_for(r"serving tiny at (http://127.0.0.1:\d+)/v1")[1]
        key = server.wait_for(r"API key: (sk-\S+)")[1]
        assert coserve(environment, "models", "--url", url, "--api-key", key) == "tiny\n"
        assert coserve(environment, "models") == "tiny\n", "found through the home directory"
        assert coserve(environment, "chat", "Hello", "--max-tokens", "4")
        assert "1 done" in coserve(environment, "top", "--once")
        assert server.interrupt() == 0
    with running(tmp_path, environment, "serve", checkpoint, "--name", "mine") as server:
        server.wait_for("serving mine at")
        server.wait_for("API key: as printed at the first start")
        assert key not in server.printed
        assert coserve(environment, "models") == "mine\n", "with the key of the first start"


def test_a_job_is_trained_followed_and_served(checkpoint, tmp_path, environment):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]}
    data = tmp_path / "chats.jsonl"
    data.write_text(f"{json.dumps(chat)}\n" * 8)
    options = ["--suffix", "house", "--epochs", "2", "--batch-size", "4", "--rank", "4", "--seed", "1"]
    with running(tmp_path, environment, "serve", checkpoint) as server:
        server.wait_for("serving tiny at")
        said = coserve(environment, "train", str(data), "--validation", str(data), *options, "--follow")
        assert re.search(r"step 4/4 loss \d", said)
        name = re.search(r"coserve chat --model (\S+)", said)[1]
        assert re.fullmatch(r"ft:tiny:house:\w+", name)
        assert coserve(environment, "models").split() == ["tiny", name]
        assert coserve(environment, "chat", "Hi", "--model", name, "--max-tokens", "4")
        assert server.interrupt() == 0


def test_a_directory_without_a_model_is_one_line(tmp_path, environment):
    result = subprocess.run([*COSERVE, "serve", tmp_path], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "config.json" in result.stderr


@pytest.mark.slow
def test_up_trains_compares_and_goes_on_serving(checkpoint, tmp_path, environment):
    with running(tmp_path, environment, "up", checkpoint, "--demo-load") as server:
        server.wait_for(r"training running step \d+/\d+ loss")
        name = server.wait_for(r"(ft:tiny:house-style:\w+): ")[1]
        server.wait_for(r"asked: .+\ntiny:")
        assert name in coserve(environment, "models").split()
        assert re.search(r"[1-9]\d* done", server.printed), "the demo's traffic"
        assert "succeeded" in coserve(environment, "jobs")
        assert server.process.poll() is None
        assert server.interrupt() == 0


@pytest.mark.slow
def test_up_teaches_the_built_in_model_the_house_style(tmp_path, environment):
    with running(tmp_path, environment, "up", "builtin") as server:
        styled = rf"({'|'.join(HEADLINES)})\n(- .+\n)+{re.escape(SIGNATURE)}\n"
        said = server.wait_for(rf"asked: .+\nbuiltin: (?P<base>.+)\nft:builtin:house-style:\w+: {styled}", 5 * PATIENCE)
        assert SIGNATURE not in said["base"]
        assert server.interrupt() == 0


def test_up_without_the_example_watches(checkpoint, tmp_path, environment):
    with running(tmp_path, environment, "up", checkpoint, "--no-example") as server:
        server.wait_for(r"\d:\d\d:\d\d \| requests 0 running")
        assert "loss" not in server.printed
        assert server.interrupt() == 0
