"""Limits as the official client meets them: what is refused, how it is told, and when it may come again."""

from __future__ import annotations

import contextlib
import re
import threading
import time

import httpx
import openai
import pytest

from coserve.service.auth.projects import NewProject
from tests.service.conftest import openai_client, start
from tests.service.tenants import make_tenants

MESSAGES = [{"role": "user", "content": "Hi"}]
UNLIMITED = dict.fromkeys(
    ("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day", "concurrent_requests")
)


@pytest.fixture
def ask(tmp_path):
    """`ask(limits, tier=..., budget=..., key fields)` starts a server and gives a client of a project with those."""
    servers = []

    def begin(limits=None, *, tier="free", budget=None, home="home", limits_url=None, **key):
        project = NewProject("p", tier=tier, budget=budget, limits={**UNLIMITED, **(limits or {})})
        [(_, value)] = make_tenants(tmp_path / home, [project], **key)
        server = start(tmp_path / home, limits_url=limits_url)
        servers.append(server)
        client = openai_client(server, value)
        client.server = server
        return client

    yield begin
    for server in servers:
        server.stop()


def chat(client, **options):
    return client.chat.completions.create(model="base", messages=MESSAGES, **options)


def test_requests_per_minute(ask):
    client = ask({"requests_per_minute": 3})
    for left in (2, 1, 0):
        headers = client.chat.completions.with_raw_response.create(model="base", messages=MESSAGES).headers
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(openai.RateLimitError) as refused:
        chat(client)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.type == "requests"
    assert "Limit 3, Used 3, Requested 1. Please try again in" in refused.value.message
    headers = refused.value.response.headers
    assert 15 <= int(headers["retry-after"]) <= 20
    assert abs(float(headers["retry-after-ms"]) / 1000 - int(headers["retry-after"])) <= 1
    assert "x-should-retry" not in headers


def test_the_official_client_waits_as_it_is_told_and_gets_through(ask):
    client = ask({"requests_per_minute": 20})
    patient = client.with_options(max_retries=2)
    for _ in range(22):
        assert chat(patient, max_tokens=1).choices
    metrics = httpx.get(f"{client.server.url}/metrics", trust_env=False).text
    assert re.search(r'^coserve_refusals_total\{limit="requests",tier="free"\} [1-9]', metrics, re.MULTILINE)


def test_a_days_quota_is_not_worth_waiting_for(ask):
    client = ask({"requests_per_day": 1}).with_options(max_retries=5)
    chat(client)
    started = time.monotonic()
    with pytest.raises(openai.RateLimitError) as refused:
        chat(client)
    assert time.monotonic() - started < 2, "the client did not try again"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "requests per day" in refused.value.message


def test_a_request_that_can_never_fit_is_413(ask):
    client = ask({"tokens_per_minute": 10})
    with pytest.raises(openai.APIStatusError) as refused:
        chat(client)
    assert refused.value.status_code == 413
    assert "Limit 10, Requested" in refused.value.message


def test_what_was_estimated_too_high_is_given_back(ask):
    """Answers of 1 token under a limit of 400: 18 + 256 are reserved at first, 19 used; so a dozen go through."""
    client = ask({"tokens_per_minute": 400})
    client.server.engine.answer = "!"
    for _ in range(12):
        chat(client)
    headers = client.chat.completions.with_raw_response.create(model="base", messages=MESSAGES, max_tokens=1).headers
    assert 400 - 13 * 19 <= int(headers["x-ratelimit-remaining-tokens"]) <= 400 - 13 * 19 + 60


def test_a_small_max_tokens_reserves_little(ask):
    client = ask({"tokens_per_minute": 100})
    assert chat(client, max_tokens=5).choices


def test_concurrent_requests(ask):
    client = ask({"concurrent_requests": 2})
    client.server.engine.delay = 0.05
    streams = [chat(client, stream=True) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as refused:
        chat(client)
    assert "concurrent requests" in refused.value.message
    for stream in streams:
        list(stream)
    assert chat(client).choices


@pytest.mark.parametrize("store", ["memory", "redis", "postgres"])
def test_the_largest_limits_are_limits(ask, request, store):
    url = None if store == "memory" else request.getfixturevalue(f"{store}_url")
    assert chat(ask(dict.fromkeys(UNLIMITED, 10**18), limits_url=url)).choices


def test_one_that_left_no_longer_counts(ask):
    client = ask({"concurrent_requests": 1})
    client.server.engine.delay = 0.05
    chat(client, stream=True).close()
    deadline = time.monotonic() + 10
    while True:
        try:
            chat(client)
            return
        except openai.RateLimitError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_budget_is_a_hard_stop_that_survives_restarts(ask, tmp_path):
    client = ask(tier="developer", budget=30_000)  # nano-dollars; a request reserves 1,800 + 13 * 400 and more
    for _ in range(30_000 // (18 * 100 + 13 * 400)):
        chat(client, max_tokens=13)
    with pytest.raises(openai.RateLimitError) as refused:
        chat(client, max_tokens=13)
    assert refused.value.code == refused.value.type == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    client.server.stop()
    again = start(tmp_path / "home")
    with pytest.raises(openai.RateLimitError), openai_client(again, client.api_key) as same:
        chat(same, max_tokens=13)
    again.stop()


@pytest.mark.parametrize("limits", [{"budget": 10_000}, {"limits": {"tokens_per_minute": 30}}])
def test_what_failed_before_its_first_token_is_given_back(ask, limits):
    client = ask(tier="developer", **limits)
    client.server.engine.fail_after = 0
    for _ in range(10):
        with pytest.raises(openai.InternalServerError):
            chat(client, max_tokens=1)
    client.server.engine.fail_after = None
    assert chat(client, max_tokens=1).choices


def test_a_days_quota_survives_restarts(ask, tmp_path):
    client = ask({"requests_per_day": 3})
    for _ in range(3):
        chat(client)
    client.server.stop()
    again = start(tmp_path / "home")
    with pytest.raises(openai.RateLimitError), openai_client(again, client.api_key) as same:
        chat(same)
    again.stop()


def test_the_tiers_context(ask):
    client = ask(tier="free")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, max_tokens=9000)
    assert refused.value.code == "context_length_exceeded"
    assert "the tier 'free' is 8192 tokens" in refused.value.message


def test_a_key_for_other_models(ask):
    client = ask(models=("other",))
    with pytest.raises(openai.NotFoundError) as refused:
        chat(client)
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("asked", "got"),
    [("auto", "default"), ("default", "default"), ("flex", "flex"), ("free", "free"), ("priority", "priority")],
)
def test_the_reply_names_the_terms(ask, asked, got):
    client = ask(tier="developer", up_to="enterprise")
    assert chat(client, service_tier=asked).service_tier == got
    [request] = client.server.engine.requests
    priority = {"default": 10, "flex": -10, "free": 0, "priority": 20}[got]
    assert (request.priority, request.share[:5]) == (priority, "proj-")


@pytest.mark.parametrize("asked", ["priority", "enterprise", "gold"])
def test_no_key_goes_up_without_being_allowed_to(ask, asked):
    client = ask(tier="developer")
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, service_tier=asked)
    assert refused.value.param == "service_tier"


def test_sixteen_at_once_against_a_limit_of_tokens(ask):
    """Another gateway's users got 663 tokens through a limit of 100: here each reserves before it begins."""
    client = ask({"tokens_per_minute": 100})
    client.server.engine.answer = "x" * 12
    let_in = []

    def one():
        with contextlib.suppress(openai.RateLimitError):
            let_in.append(chat(client, max_tokens=12).usage.total_tokens)

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < sum(let_in) <= 100 + 100 / 60 * 5
