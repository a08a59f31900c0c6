"""/sleep, /wake_up and /is_sleeping: vLLM's paths, for administrators."""

from __future__ import annotations

import pytest

from coserve.errors import Unavailable
from coserve.service.no_engine import NoEngine
from tests.service.admin import http_client, new_key, soon
from tests.service.conftest import KEY, start


@pytest.fixture(scope="module")
def http(home, server):
    key, _ = new_key(home, scopes=("admin",))
    with http_client(server, key) as http:
        assert soon(lambda: http.get("/is_sleeping").status_code == 200)
        yield http


def asleep(http) -> bool:
    return http.get("/is_sleeping").json()["is_sleeping"]


def test_an_administrator_puts_it_to_sleep_and_wakes_it(http):
    assert not asleep(http)
    for path in ("/sleep", "/sleep?level=1"):
        reply = http.post(path)
        assert (reply.status_code, reply.json()) == (200, {"is_sleeping": True, "freed_bytes": 7_000_000_000})
        assert asleep(http)
    assert http.post("/wake_up").json() == {"is_sleeping": False}
    assert not asleep(http)
    told = http.get("/v1/organization/audit_logs", params={"limit": 3}).json()["data"]
    assert [event["type"] for event in told] == ["engine.woken", "engine.slept", "engine.slept"]


def test_nobody_else_does(server):
    with http_client(server, KEY) as http:
        for method, path in (("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")):
            assert http.request(method, path).status_code == 403
    assert not server.engine.asleep


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/sleep?level=2", "level is '2'; it must be 1 or left out: weights and KV cache are kept in main memory."),
        ("/wake_up?tags=weights", "tags is 'weights'; it must be left out: all wakes at once."),
    ],
)
def test_what_only_vllm_knows_is_refused(http, path, said):
    reply = http.post(path)
    assert reply.status_code == 400 and reply.json()["error"]["message"] == said
    assert not asleep(http)


def test_without_room_it_is_said_and_nothing_is_noted(http, server, monkeypatch):
    def full() -> int:
        raise Unavailable("sleeping takes 16.1 GB of main memory; 2.0 GB are free.")

    monkeypatch.setattr(server.engine, "sleep", full)
    reply = http.post("/sleep")
    assert reply.status_code == 503 and "2.0 GB are free" in reply.json()["error"]["message"]
    assert not asleep(http)


def test_a_gateway_has_nothing_that_could_sleep(tmp_path):
    server = start(tmp_path, NoEngine())
    key, _ = new_key(tmp_path, scopes=("admin",))
    try:
        with http_client(server, key) as http:
            assert soon(lambda: http.get("/is_sleeping").status_code == 200)
            reply = http.post("/sleep")
            assert reply.status_code == 400 and "gateway" in reply.json()["error"]["message"]
    finally:
        server.stop()
