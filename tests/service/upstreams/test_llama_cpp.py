"""A server that we did not write: llama.cpp's, with a tiny model of random weights.

python -m venv DIR && DIR/bin/pip install 'llama-cpp-python[server]' gguf    # compiles for a quarter of an hour
COSERVE_TEST_LLAMA_CPP=DIR/bin/python make test-all ARGS=tests/service/upstreams
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx
import openai
import pytest

from tests.service.conftest import KEY
from tests.service.upstreams.conftest import HELLO, config, events, until
from tests.service.upstreams.faulty import FaultyServer, refusing_port, status

PYTHON = os.environ.get("COSERVE_TEST_LLAMA_CPP")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason="NOT TESTED against llama.cpp: set COSERVE_TEST_LLAMA_CPP (see the file)"
    ),
]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory):
    model = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    subprocess.run([PYTHON, str(Path(__file__).with_name("tiny_gguf.py")), str(model)], check=True)
    port = refusing_port()
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "tiny", "--n_ctx", "512"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/models", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    until(answers, 60)
    yield url
    process.terminate()
    process.wait(20)


@pytest.fixture
def gateway(start, llama_cpp):
    timeout = {"first_token": 20, "idle": 20, "whole": 20}
    return start({"one": config({"base_url": llama_cpp, "models": {"m": "tiny"}, "timeout": timeout})})


def test_it_says_the_same_through_the_gateway_as_without(gateway, llama_cpp):
    asked = {"messages": HELLO, "max_tokens": 8, "temperature": 0, "seed": 1}
    with openai.OpenAI(base_url=llama_cpp, api_key="none", max_retries=0) as direct:
        there = direct.chat.completions.create(model="tiny", **asked)
    here = gateway.client.chat.completions.create(model="m", **asked)
    assert here.choices[0].message.content == there.choices[0].message.content
    assert (here.model, here.usage) == ("m", there.usage)
    streamed = gateway.client.chat.completions.create(model="m", stream=True, **asked)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == there.choices[0].message.content


def test_its_streams_tell_no_usage_and_are_billed_by_their_pieces(gateway):
    body = {"model": "m", "messages": HELLO, "max_tokens": 30, "stream": True, "temperature": 0}
    reply = gateway.http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    *chunks, last = events(reply.text)
    pieces = sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks)
    assert last["usage"]["completion_tokens"] == pieces > 0
    (row,) = gateway.rows()
    assert (row["completion_tokens"], row["outcome"], row["upstream"]) == (pieces, "completed", "one")


def test_plain_completions_work_too(gateway):
    reply = gateway.client.completions.create(model="m", prompt="Hi", max_tokens=5)
    assert reply.usage.completion_tokens > 0
    (row,) = gateway.rows()
    assert row["completion_tokens"] == reply.usage.completion_tokens
    assert row["prompt_tokens"] == reply.usage.prompt_tokens


def test_what_it_finds_wrong_is_the_client_s_fault(gateway):
    with pytest.raises(openai.BadRequestError):
        gateway.client.chat.completions.create(model="m", messages=HELLO * 200)
    assert gateway.state()["breaker"] == "closed"


def test_it_takes_over_from_one_that_fails(start, one: FaultyServer, llama_cpp):
    one.default = status(500)
    there = config({"base_url": llama_cpp, "models": {"m": "tiny"}, "timeout": {"first_token": 20, "whole": 20}})
    gateway = start({"one": one.url, "there": there})
    assert gateway.text(stream=True, max_tokens=4)
    assert gateway.rows()[0]["upstream"] == "there"


def test_a_client_may_leave_in_the_middle_and_it_serves_the_next(gateway):
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": "m", "messages": HELLO, "stream": True, "temperature": 0, "max_tokens": 200}
    with httpx.stream("POST", f"{gateway.server.url}/v1/chat/completions", json=body, headers=headers) as reply:
        next(reply.iter_lines())
    assert gateway.text(stream=False, max_tokens=3) is not None
