"""What goes wrong before the first token is another upstream's chance; what goes wrong after it is an error."""

import time

import openai
import pytest

from tests.service.conftest import KEY
from tests.service.upstreams.conftest import HELLO, UPSTREAM_KEY, config, events, until
from tests.service.upstreams.faulty import (
    answer,
    breaking_off,
    close_at_once,
    half_a_body,
    hang,
    hang_after_role,
    no_json,
    not_http,
    redirect,
    refusing_port,
    slow_head,
    status,
)

BOTH = {
    "closes": close_at_once,
    "no-http": not_http,
    "no-json": no_json,
    "slow-head": slow_head,
    "hangs": hang,
    "500": status(500),
    "503": status(503, "retry-after: 1"),
    "429": status(429, "retry-after: 30"),
    "401": status(401, message=f"Incorrect API key provided: {UPSTREAM_KEY}"),
    "404": status(404),
    "redirect": redirect("http://127.0.0.1:1/v1/chat/completions"),
}
STREAMS = {"hangs-after-role": hang_after_role, "error-first": breaking_off(0, "error"), "ends": breaking_off(0, "end")}
CASES = [(name, stream, fault) for name, fault in BOTH.items() for stream in (False, True)]
CASES += [(name, True, fault) for name, fault in STREAMS.items()] + [("half-a-body", False, half_a_body)]


@pytest.mark.parametrize(("stream", "fault"), [c[1:] for c in CASES], ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_the_next_upstream_answers(start, one, two, stream, fault):
    gateway = start({"one": one.url, "two": two.url})
    one.default = fault
    assert gateway.text(stream=stream) == "Hello, world!"
    assert (len(one.posts), len(two.posts)) == (1, 1)
    (row,) = gateway.rows()
    assert (row["upstream"], row["outcome"], row["completion_tokens"]) == ("two", "completed", 7)
    assert UPSTREAM_KEY not in str(gateway.state())


def test_an_upstream_that_nobody_listens_for_is_passed_over(start, two):
    gateway = start({"one": f"http://127.0.0.1:{refusing_port()}/v1", "two": two.url})
    assert gateway.text(stream=True) == "Hello, world!"
    assert gateway.state()["last_error"] == "it could not be reached"  # by the request, or a health check before it


def test_a_redirect_is_never_followed(start, one, two):
    gateway = start({"one": one.url})
    one.default = redirect(f"{two.url}/chat/completions")
    with pytest.raises(openai.APIStatusError) as caught:
        gateway.text(stream=False)
    assert caught.value.status_code == 502
    assert two.exchanges == []


@pytest.mark.parametrize("how", ["close", "end", "error", "hang", "garbage"])
def test_after_the_first_token_nobody_else_answers(start, one, two, how):
    gateway = start({"one": one.url, "two": two.url})
    one.default = breaking_off(2, how)
    pieces: list[str] = []
    stream = gateway.client.chat.completions.create(model="m", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="upstream of the model 'm' failed"):
        pieces.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(pieces) == "Hello, "
    assert two.posts == []
    (row,) = gateway.rows()
    assert (row["upstream"], row["outcome"], row["completion_tokens"]) == ("one", "failed", 2)


def test_an_error_in_mid_stream_is_an_event_without_the_key(start, one):
    gateway = start({"one": one.url})
    one.default = breaking_off(1, "error")
    reply = gateway.http.post("/v1/chat/completions", json={"model": "m", "messages": HELLO, "stream": True})
    *_, last = events(reply.text)
    assert last["error"]["code"] == "upstream_error"
    assert "out of memory, key ***" in last["error"]["message"]
    assert gateway.state()["last_error"] == "it ended its stream with an error"  # its words may quote a prompt


def test_one_upstream_is_tried_again_after_a_passing_trouble(start, one):
    gateway = start({"one": one.url})
    for stream in (False, True):
        one.script = [status(503)]
        assert gateway.text(stream=stream) == "Hello, world!"
    assert len(one.posts) == 4
    assert len(gateway.rows(2)) == 2


def test_retry_after_is_waited_for_when_it_is_short(start, one):
    gateway = start({"one": one.url})
    one.script = [status(429, "retry-after-ms: 300")]
    began = time.monotonic()
    assert gateway.text(stream=False) == "Hello, world!"
    assert time.monotonic() - began >= 0.3


def test_and_told_to_the_client_when_it_is_long(start, one):
    gateway = start({"one": one.url})
    one.script = [status(429, "retry-after: 30")]
    for _ in range(2):  # the second time it is not even asked
        reply = gateway.http.post("/v1/chat/completions", json={"model": "m", "messages": HELLO})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "upstreams_busy")
        assert 28 <= int(reply.headers["retry-after"]) <= 30
    assert len(one.posts) == 1


def test_when_nobody_answers_the_error_says_why_and_nothing_is_billed(start, one, two):
    gateway = start({"one": one.url, "two": two.url}, {"via": ["one", "two"], "rounds": 1})
    one.default, two.default = status(500, message=f"boom {UPSTREAM_KEY}"), close_at_once
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            gateway.text(stream=stream)
        assert caught.value.status_code == 502
        assert "one: it answered with 500; two: it closed the connection" in str(caught.value)
        assert UPSTREAM_KEY not in str(caught.value)
    for row in gateway.rows(2):
        assert (row["outcome"], row["prompt_tokens"], row["completion_tokens"], row["cost"]) == ("failed", 0, 0, 0)


def test_a_breaker_opens_half_opens_and_closes(start, one, two):
    breaker = {"failures": 2, "pause": 0.4}
    gateway = start({"one": config({"base_url": one.url, "breaker": breaker, "health_interval": 60}), "two": two.url})
    one.default = status(500)
    for _ in range(4):
        assert gateway.text(stream=False) == "Hello, world!"
    assert len(one.posts) == 2  # then it was left alone
    assert gateway.state()["breaker"] == "open"
    assert 'coserve_upstream_breaker_open{upstream="one"} 1.0' in gateway.http.get("/metrics").text
    until(lambda: gateway.state()["breaker"] == "half_open")
    assert gateway.text(stream=False) == "Hello, world!"  # the probe failed, two answered
    assert (len(one.posts), gateway.state()["breaker"]) == (3, "open")
    assert gateway.state()["seconds_away"] > 0.4  # twice as long as before
    one.default = answer
    until(lambda: gateway.state()["breaker"] == "half_open")
    assert gateway.text(stream=True) == "Hello, world!"
    assert (len(one.posts), gateway.state()["breaker"]) == (4, "closed")


def test_health_checks_find_out_before_a_request_does(start, one):
    gone = config({"base_url": f"http://127.0.0.1:{refusing_port()}/v1", "health_interval": 0.1})
    gateway = start(
        {"gone": gone, "one": config({"base_url": one.url, "health_interval": 0.1})}, {"via": ["gone", "one"]}
    )
    until(lambda: gateway.state("gone")["breaker"] != "closed")
    assert "could not be reached" in gateway.state("gone")["last_error"]
    until(lambda: len(one.exchanges) > 1)
    assert {(exchange.method, exchange.path) for exchange in one.exchanges} == {("GET", "/v1/models")}
    assert gateway.text(stream=False) == "Hello, world!"
    seen = len(one.exchanges)
    time.sleep(0.4)
    assert len(one.exchanges) <= seen + 1  # who answers requests needs no checks


def test_a_sign_of_life_ends_the_pause(start, one):
    breaker = {"failures": 1, "pause": 60}
    gateway = start(
        {"one": config({"base_url": one.url, "breaker": breaker, "health_interval": 0.1})},
        {"via": ["one"], "rounds": 1},
    )
    one.script = [status(500)]
    with pytest.raises(openai.APIStatusError):
        gateway.text(stream=False)
    until(lambda: gateway.state()["breaker"] == "half_open")
    assert gateway.text(stream=False) == "Hello, world!"
    assert gateway.state()["breaker"] == "closed"


def test_an_upstream_s_own_limits_send_requests_on(start, one, two):
    limited = config({"base_url": one.url, "requests_per_minute": 2})
    gateway = start({"one": limited, "two": two.url})
    for _ in range(5):
        gateway.text(stream=False)
    assert (len(one.posts), len(two.posts)) == (2, 3)
    assert gateway.state()["breaker"] == "closed"


def test_tokens_are_settled_by_what_was_used(start, one):
    limited = config({"base_url": one.url, "tokens_per_minute": 300})  # an estimate is 256 and the prompt
    gateway = start({"one": limited}, {"via": ["one"], "rounds": 1})
    for _ in range(3):
        gateway.text(stream=True)
    assert len(one.posts) == 3


def test_a_full_upstream_says_when(start, one):
    gateway = start({"one": config({"base_url": one.url, "requests_per_minute": 1})})
    gateway.text(stream=False)
    reply = gateway.http.post("/v1/chat/completions", json={"model": "m", "messages": HELLO})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "upstreams_busy")
    assert 50 <= int(reply.headers["retry-after"]) <= 60
    assert KEY not in reply.text
