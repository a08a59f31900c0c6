"""Programs that a benchmark starts, and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Text = TypeVar("Text", str, bytes)


@contextmanager
def ended(process: subprocess.Popen[Text]) -> Iterator[subprocess.Popen[Text]]:
    """For a block, after which it ends: asked first, and killed if that does not help."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


class ChildError(Exception):
    """What a child process has to say that failed, or took too long."""


def child_reports(module: str, task: Any, limit: float) -> Iterator[dict[str, Any]]:
    """What `python -m MODULE` reports about a task, see `task_of_parent` and `report`, as it comes.

    Raises `ChildError`, after the reports that there were, if it fails or has not ended after `limit` seconds: then it
    is killed.
    """
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", module]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
        with ended(subprocess.Popen(command, cwd=root, text=True, **pipes)) as child:
            assert child.stdin is not None and child.stdout is not None
            out_of_time = threading.Timer(max(0.1, limit), child.kill)
            out_of_time.start()
            try:
                print(json.dumps(task), file=child.stdin, flush=True)
                for line in child.stdout:
                    if line.startswith(_REPORT):
                        yield json.loads(line.removeprefix(_REPORT))
                status = child.wait()
            except BrokenPipeError:
                status = child.wait()
            finally:
                late = not out_of_time.is_alive()
                out_of_time.cancel()
        if late:
            raise ChildError(f"{module} was ended after {limit:.0f} s")
        if status:
            said.seek(0)
            raise ChildError(f"{module} ended with status {status}: {_last_lines(said.read())}")


_REPORT = "report "  # before each line that is one: libraries print, too


def task_of_parent() -> Any:
    """In the child: what to do. It ends with its parent, which holds the other end of stdin."""
    task = json.loads(sys.stdin.readline())

    def follow() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    return task


def report(**figures: Any) -> None:
    """From the child to its parent."""
    print(_REPORT + json.dumps(figures), flush=True)


def _last_lines(text: str, number: int = 5) -> str:
    return " | ".join(line.strip() for line in text.splitlines()[-number:])
