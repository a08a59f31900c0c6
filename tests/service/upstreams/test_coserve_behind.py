"""coserve behind coserve: a server of ours is an upstream like any other."""

from __future__ import annotations

import openai
import pytest

from tests.service.conftest import KEY
from tests.service.conftest import start as start_server
from tests.service.fake_engine import FakeEngine
from tests.service.upstreams.conftest import HELLO, events, usage_rows


@pytest.fixture
def behind(tmp_path):
    server = start_server(tmp_path / "behind", FakeEngine("base"))
    yield server
    server.stop()


@pytest.fixture
def gateway(start, behind, monkeypatch):
    monkeypatch.setenv("BEHIND_KEY", KEY)
    upstream = {"base_url": f"{behind.url}/v1", "api_key_env": "BEHIND_KEY", "models": {"m": "base"}}
    return start({"behind": upstream})


def test_answers_logprobs_and_choices_come_through(gateway):
    assert gateway.text(stream=False) == gateway.text(stream=True) == "Hello, world!"
    reply = gateway.client.chat.completions.create(model="m", messages=HELLO, n=2, logprobs=True, max_tokens=3)
    assert [choice.message.content for choice in reply.choices] == ["Hel", "Hel"]
    assert [token.token for token in reply.choices[1].logprobs.content] == ["H", "e", "l"]
    assert reply.model == "m"
    text = gateway.client.completions.create(model="m", prompt="Hi", max_tokens=5).choices[0].text
    assert text == "Hello"


def test_both_ledgers_agree(gateway, behind):
    gateway.text(stream=True)
    gateway.text(stream=False)
    ours = gateway.rows(2)
    theirs = usage_rows(behind, 2)
    for field in ("prompt_tokens", "completion_tokens", "outcome"):
        assert [row[field] for row in ours] == [row[field] for row in theirs]
    assert {row["upstream"] for row in ours} == {"behind"}
    assert {row["model"] for row in ours} == {"m"}


def test_a_wrong_request_is_explained_by_the_one_who_knows(gateway):
    with pytest.raises(openai.BadRequestError, match="it must be between 0 and 2") as caught:
        gateway.text(stream=True, temperature=3)
    assert caught.value.param == "temperature"


def test_an_engine_that_fails_in_mid_stream_fails_here_too(gateway, behind):
    behind.engine.fail_after = 3
    body = {"model": "m", "messages": HELLO, "stream": True}
    *chunks, last = events(gateway.http.post("/v1/chat/completions", json=body).text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "Hel"
    assert "The engine failed on this request." in last["error"]["message"]
