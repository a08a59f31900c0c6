"""`coserve gateway`: a server without an engine, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest
import yaml

from coserve.errors import InvalidRequest
from coserve.service.upstreams.config import FILE
from tests.service.upstreams.conftest import HELLO
from tests.service.upstreams.faulty import refusing_port

NO_TORCH = "import sys; sys.modules['torch'] = None; from coserve.cli import main; main()"


def test_it_starts_without_torch_and_answers(tmp_path, one):
    home, port = tmp_path / "home", refusing_port()
    home.mkdir()
    content = {"upstreams": {"one": {"base_url": one.url}}, "models": {"m": {"via": ["one"]}}}
    (home / FILE).write_text(yaml.safe_dump(content))
    command = ["gateway", "--home", str(home), "--port", str(port), "--api-key", "k"]
    process = subprocess.Popen([sys.executable, "-c", NO_TORCH, *command], stdout=subprocess.PIPE, env=os.environ)
    try:
        url, headers = f"http://127.0.0.1:{port}", {"authorization": "Bearer k"}
        for line in process.stdout:
            if b"API key" in line:
                break
        body = {"model": "m", "messages": HELLO}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, trust_env=False)
        assert reply.json()["choices"][0]["message"]["content"] == "Hello, world!"
        assert httpx.get(f"{url}/health", trust_env=False).json()["model"] == "gateway"
        job = {"model": "m", "training_file": "file-1"}
        refused = httpx.post(f"{url}/v1/fine_tuning/jobs", json=job, headers=headers, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_gateway_to_nowhere_does_not_start(tmp_path):
    from coserve.cli.launch import run_gateway
    from coserve.cli.settings import ServeSettings

    with pytest.raises(InvalidRequest, match="A gateway needs upstreams"):
        run_gateway(ServeSettings(home=tmp_path, port=0))
