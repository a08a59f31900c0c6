"""A request passed on and its reply passed back: the official client in front, a real server behind."""

import json

import httpx
import openai
import pytest

from tests.service.conftest import KEY
from tests.service.upstreams.conftest import HELLO, UPSTREAM_KEY, config, events, until
from tests.service.upstreams.faulty import endless, no_usage, status, usage_in_each_chunk


@pytest.fixture
def gateway(start, one):
    return start({"one": config({"base_url": one.url, "models": {"m": "their/m"}, "refuses": ["logit_bias", "user"]})})


def test_a_whole_reply_has_the_client_s_names(gateway, one):
    reply = gateway.client.chat.completions.create(model="m", messages=HELLO)
    assert reply.choices[0].message.content == "Hello, world!"
    assert (reply.model, reply.service_tier, reply.id) == ("m", "default", "up-1")
    assert reply.usage.completion_tokens == 7
    assert one.posts[0].path == "/v1/chat/completions"
    assert one.posts[0].body == {"model": "their/m", "messages": HELLO}


def test_a_stream_has_them_too_and_ends_with_done(gateway, one):
    reply = gateway.http.post("/v1/chat/completions", json={"model": "m", "messages": HELLO, "stream": True})
    chunks = events(reply.text)
    assert {(chunk["model"], chunk["service_tier"]) for chunk in chunks} == {("m", "default")}
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "Hello, world!"
    assert all(chunk["choices"] for chunk in chunks)  # usage was asked for, and not by the client
    assert one.posts[0].body["stream_options"] == {"include_usage": True}


def test_usage_is_passed_on_to_those_who_ask(gateway):
    body = {"model": "m", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    *_, last = events(gateway.http.post("/v1/chat/completions", json=body).text)
    assert (last["choices"], last["usage"]["completion_tokens"], last["model"]) == ([], 7, "m")


def test_plain_completions_go_the_same_way(gateway, one):
    reply = gateway.client.completions.create(model="m", prompt=["Hi", "Ho"], max_tokens=3)
    assert (reply.choices[0].text, reply.model) == ("Hello, world!", "m")
    assert one.posts[0].body == {"model": "their/m", "prompt": ["Hi", "Ho"], "max_tokens": 3}
    stream = gateway.client.completions.create(model="m", prompt="Hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "Hello, world!"


def test_completions_have_the_length_that_they_have_here_unless_the_client_says(gateway, one):
    for said in ({}, {"max_tokens": None}, {"max_tokens": 3}):
        gateway.http.post("/v1/completions", json={"model": "m", "prompt": "Hi", **said})
    assert [post.body["max_tokens"] for post in one.posts] == [16, 16, 3]


def test_what_the_client_wrote_is_passed_on_and_nobody_else_s_affair_is_not(gateway, one):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": 1.10}}}]
    body = {"model": "m", "messages": HELLO, "tools": tools, "unheard_of": {"a": [1, None, "ü"]}, "temperature": 0.7}
    gateway.http.post("/v1/chat/completions", json={**body, "user": "u", "service_tier": "auto", "logit_bias": {}})
    exchange = one.posts[0]
    assert exchange.body == {**body, "model": "their/m"}
    assert exchange.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert KEY not in json.dumps([exchange.headers, exchange.body])


def test_a_refused_field_that_matters_is_refused_by_name(gateway, one):
    body = {"model": "m", "messages": HELLO, "logit_bias": {"1": 5}}
    reply = gateway.http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logit_bias")
    assert one.posts == []


def test_a_request_that_is_wrong_is_told_in_the_upstream_s_words(gateway, one):
    one.default = status(400, message=f"their/m does not like this; key {UPSTREAM_KEY}")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            gateway.text(stream=stream)
        assert caught.value.body["message"] == "m does not like this; key ***"
        assert (caught.value.param, caught.value.code) == ("temperature", "c")
    assert len(one.posts) == 2
    assert gateway.state()["breaker"] == "closed"


def test_the_bill_is_what_the_upstream_tells(gateway):
    for stream in (False, True):
        gateway.text(stream=stream)
    for row in gateway.rows(2):
        assert (row["upstream"], row["model"], row["adapter"], row["outcome"]) == ("one", "m", None, "completed")
        assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (9, 4, 7)
        assert row["ttft_ms"] > 0


def test_what_the_upstream_takes_is_on_the_bill_beside_the_price(start, one):
    price = {"input": 1, "cached_input": 0.5, "output": 2}
    gateway = start({"one": config({"base_url": one.url, "price": price})})
    gateway.text(stream=False)
    gateway.text(stream=True)
    assert [row["upstream_cost"] for row in gateway.rows(2)] == [5_000 + 2_000 + 14_000] * 2
    one.default = status(500)
    with pytest.raises(openai.InternalServerError):
        gateway.text(stream=False)
    assert gateway.rows(3)[2]["upstream_cost"] == 0


def test_without_usage_pieces_are_counted(gateway, one):
    one.default = no_usage
    body = {"model": "m", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    *_, last = events(gateway.http.post("/v1/chat/completions", json=body).text)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
    gateway.text(stream=False)
    streamed, whole = gateway.rows(2)
    assert streamed["completion_tokens"] == 4
    assert whole["completion_tokens"] > 0


def test_usage_in_each_chunk_holds_no_token_back(gateway, one):
    one.default = usage_in_each_chunk
    assert gateway.text(stream=True) == "Hello, world!"
    (row,) = gateway.rows()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (9, 8)
    assert row["ttft_ms"] < 300


def test_a_client_that_leaves_closes_the_upstream_and_pays_for_what_it_got(gateway, one):
    one.default = endless
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": "m", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{gateway.server.url}/v1/chat/completions", json=body, headers=headers) as reply:
        lines = [line for line, _ in zip(reply.iter_lines(), range(10), strict=False)]
    assert any("word" in line for line in lines)
    until(one.posts[0].gone.is_set)
    (row,) = gateway.rows()
    assert row["outcome"] == "disconnected"
    assert row["completion_tokens"] > 0
    assert row["prompt_tokens"] > 0


def test_models_are_listed_with_their_upstream(gateway):
    listed = gateway.client.models.list().data
    assert [(model.id, model.owned_by) for model in listed] == [("m", "one")]
    assert gateway.client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError):
        gateway.client.models.retrieve("their/m")
    with pytest.raises(openai.NotFoundError):
        gateway.client.chat.completions.create(model="their/m", messages=HELLO)


def test_metrics_and_state_have_no_secrets(gateway, one):
    gateway.text(stream=False)
    metrics = gateway.http.get("/metrics").text
    assert 'coserve_upstream_requests_total{outcome="answered",upstream="one"} 1.0' in metrics
    assert 'coserve_upstream_breaker_open{upstream="one"} 0.0' in metrics
    state = gateway.http.get("/coserve/upstreams").text
    assert gateway.state()["requests"] == {"answered": 1}
    assert UPSTREAM_KEY not in metrics + state
    assert str(one.port) not in metrics + state
