"""SIGHUP: the operator's word for reading the tiers again, and the system's for a terminal that was closed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import httpx
import pytest

from tests.service.test_kill import ROOT


def test_a_server_reads_its_tiers_on_sighup_and_stops_when_its_terminal_closes(tmp_path):
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "tests.service.live", "fake", str(tmp_path), "0"]
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    try:
        url = process.stdout.readline().strip()
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        os.close(ours)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
