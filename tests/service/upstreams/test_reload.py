"""upstreams.yaml is read again while the server runs: what did not change keeps its state, no request is dropped."""

import pytest
import yaml

from coserve.errors import InvalidRequest
from tests.service.upstreams.conftest import HELLO, config, until
from tests.service.upstreams.faulty import answer, endless, status


@pytest.fixture
def rewrite(tmp_path):
    def rewriting(upstreams, models):
        whole = {name: config(value) for name, value in upstreams.items()}
        (tmp_path / "upstreams.yaml").write_text(yaml.safe_dump({"upstreams": whole, "models": models}))

    return rewriting


def models(gateway):
    return [model.id for model in gateway.client.models.list().data]


def test_models_and_upstreams_come_and_go(start, one, two, rewrite):
    gateway = start({"one": one.url})
    gateway.text(stream=False)
    rewrite({"two": two.url}, {"m": {"via": ["two"]}, "more": {"via": ["two"]}})
    gateway.server.reload()
    until(lambda: models(gateway) == ["m", "more"])
    assert gateway.text(stream=False) == gateway.text(stream=True) == "Hello, world!"
    assert (len(one.posts), len(two.posts)) == (1, 2)
    assert list(gateway.http.get("/coserve/upstreams").json()) == ["two"]
    assert 'coserve_upstream_breaker_open{upstream="two"} 0.0' in gateway.http.get("/metrics").text


def test_one_that_did_not_change_keeps_its_breaker_and_one_that_did_begins_anew(start, one, two, rewrite):
    breaker = {"failures": 1, "pause": 60, "longest_pause": 60}
    usual = {"breaker": breaker, "health_interval": "1h"}
    both = {"one": {"base_url": one.url, **usual}, "two": {"base_url": two.url, **usual}}
    gateway = start(both)
    one.default = two.default = status(500)
    with pytest.raises(Exception, match="could answer"):
        gateway.text(stream=False)
    assert gateway.state("one")["breaker"] == gateway.state("two")["breaker"] == "open"
    two.default = answer
    rewrite({**both, "two": {**both["two"], "price": {"input": 1}}}, {"m": {"via": ["one", "two"]}})
    gateway.server.reload()
    until(lambda: gateway.state("two")["breaker"] == "closed")
    assert gateway.state("one")["breaker"] == "open"
    assert gateway.text(stream=False) == "Hello, world!"


def test_a_stream_from_an_upstream_that_goes_goes_on(start, one, two, rewrite):
    gateway = start({"one": one.url})
    one.default = endless
    with gateway.client.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
        next(stream)
        rewrite({"two": two.url}, {"m": {"via": ["two"]}})
        gateway.server.reload()
        until(lambda: list(gateway.http.get("/coserve/upstreams").json()) == ["two"])
        assert [next(stream).choices[0].delta.content for _ in range(20)] == ["word "] * 20
    assert gateway.text(stream=False) == "Hello, world!"


def test_a_wrong_file_changes_nothing(start, one, rewrite, caplog):
    gateway = start({"one": one.url})
    rewrite({"one": one.url}, {"m": {"via": ["nobody"]}})
    with pytest.raises(InvalidRequest, match="nobody"):
        gateway.server._service.reload()
    gateway.server.reload()
    assert gateway.text(stream=False) == "Hello, world!"
    assert "stay as they were" in caplog.text
