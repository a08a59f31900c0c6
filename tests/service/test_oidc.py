"""OIDC: an administrator's token opens the administration; nothing that only looks like one does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time

import httpx
import pytest

from coserve.errors import InvalidRequest
from coserve.service import Settings
from coserve.service.auth import oidc
from coserve.service.auth.oidc import Issuer, is_token
from tests.service.conftest import KEY, start
from tests.service.issuer import AUDIENCE, StandIn, stand_in

PROJECTS = "/v1/organization/projects"


@pytest.fixture(scope="module")
def issuer():
    with stand_in() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def server(tmp_path_factory, issuer):
    admins = "ada,grace@example.com,groups=coserve-admins"
    server = start(tmp_path_factory.mktemp("home"), oidc_issuer=issuer.url, oidc_audience=AUDIENCE, oidc_admins=admins)
    yield server
    server.stop()


def ask(server, token: str, path: str = PROJECTS, method: str = "GET", **options) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.request(method, server.url + path, headers=headers, timeout=20, trust_env=False, **options)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"alg": "ES256", "kid": "curve"},
        {"aud": ["other", AUDIENCE]},
        {"sub": "x", "email": "grace@example.com", "email_verified": True},
        {"sub": "x", "groups": ["staff", "coserve-admins"]},
        {"sub": "x", "groups": "coserve-admins"},
    ],
)
def test_an_administrators_token_opens_the_administration_only(server, issuer, claims):
    token = issuer.token(**claims)
    assert ask(server, token).status_code == 200
    refused = ask(server, token, "/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "eve"},
        {"sub": "eve", "email": "grace@example.com"},  # not verified
        {"sub": "eve", "email": "grace@example.com", "email_verified": "true"},
        {"sub": "eve", "groups": ["coserve-admins-not"]},
        {"sub": "eve", "groups": {"coserve-admins": True}},
    ],
)
def test_others_of_the_issuer_are_told_that_they_do_not_administer(server, issuer, claims):
    assert ask(server, issuer.token(**claims)).status_code == 403


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"aud": "another"}, "'aud'"),
        ({"aud": None}, "missing or wrong"),
        ({"iss": "https://elsewhere.example"}, "'iss'"),
        ({"exp": int(time.time()) - 3600}, "expired"),
        ({"exp": None}, "missing or wrong"),
        ({"exp": "tomorrow"}, "'exp'"),
        ({"nbf": int(time.time()) + 3600}, "'nbf'"),
        ({"sub": None}, "missing or wrong"),
        ({"sub": 7}, "'sub'"),
        ({"kid": "curve", "alg": "RS256", "key": "first"}, "signature"),
    ],
)
def test_a_token_for_another_place_or_time_is_refused_with_its_reason(server, issuer, claims, why):
    if "key" in claims:
        claims = {**claims, "key": issuer.keys[claims["key"]]}
    reply = ask(server, issuer.token(**claims))
    assert reply.status_code == 401
    assert why in reply.json()["error"]["message"]


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def claims_of(issuer: StandIn) -> dict:
    now = int(time.time())
    return {"iss": issuer.url, "aud": AUDIENCE, "sub": "ada", "exp": now + 60}


def test_unsigned_and_symmetric_tokens_are_refused(server, issuer):
    unsigned = [f"{encoded({'alg': alg, 'kid': 'first'})}.{encoded(claims_of(issuer))}." for alg in ("none", "None")]
    public = issuer.keys["first"].as_pem(private=False)
    signed = f"{encoded({'alg': 'HS256', 'kid': 'first'})}.{encoded(claims_of(issuer))}"
    mac = base64.urlsafe_b64encode(hmac.digest(public, signed.encode(), hashlib.sha256)).decode().rstrip("=")
    for token in (*unsigned, f"{signed}.{mac}"):
        reply = ask(server, token)
        assert reply.status_code == 401
        assert "RS256 or ES256" in reply.json()["error"]["message"]


def test_a_changed_token_is_refused(server, issuer):
    header, _, signature = issuer.token().split(".")
    assert ask(server, f"{header}.{encoded({**claims_of(issuer), 'sub': 'grace'})}.{signature}").status_code == 401


@pytest.mark.parametrize(
    "header", ["alg", ["alg"], {"alg": 1}, {"alg": "RS256", "kid": {}}, {"alg": "RS256", "kid": []}]
)
def test_what_only_looks_like_a_token_is_refused(server, issuer, header):
    assert ask(server, f"{encoded(header)}.{encoded(claims_of(issuer))}.AAAA").status_code == 401
    assert ask(server, "..").status_code == 401
    assert ask(server, "a.b.c").status_code == 401


def test_a_new_key_of_the_issuer_is_fetched_and_an_unknown_one_asked_for_once(server, issuer, monkeypatch):
    monkeypatch.setattr(oidc, "PAUSE_SECONDS", 0)
    issuer.keys["second"] = type(issuer.keys["first"]).generate_key(2048)
    assert ask(server, issuer.token(kid="second")).status_code == 200
    monkeypatch.setattr(oidc, "PAUSE_SECONDS", 60)
    before = len(issuer.requests)
    stranger = type(issuer.keys["first"]).generate_key(2048)
    for _ in range(5):
        assert ask(server, issuer.token(kid="third", key=stranger)).status_code == 401
    assert len(issuer.requests) == before


def test_the_audit_log_names_the_subject(server, issuer):
    made = ask(server, issuer.token(), method="POST", json={"name": "By a person"}).json()
    (event,) = ask(server, issuer.token(), f"/v1/organization/audit_logs?resource_ids[]={made['id']}").json()["data"]
    assert event["actor"]["session"]["user"]["id"] == "oidc:ada"


def test_an_issuer_that_is_away_or_says_another_name_is_told_as_a_shortage(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with stand_in() as issuer:
        issuer.called = "https://elsewhere.example"
        server = start(tmp_path, oidc_issuer=issuer.url, oidc_audience=AUDIENCE, oidc_admins="ada")
        token = issuer.token()
        wrong = ask(server, token)
    away = ask(server, token)
    server.stop()
    for reply in (wrong, away):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert issuer.url in reply.json()["error"]["message"]
        assert token not in reply.text
    assert token not in caplog.text


def test_keys_stay_valid_beside_it(server):
    assert ask(server, KEY, "/v1/models").status_code == 200
    assert not is_token("sk-cs-a.b.c")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"audience": ""}, "oidc_audience"),
        ({"admins": ()}, "oidc_admins"),
        ({"url": "http://issuer.example"}, "oidc_issuer"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_start(options, param):
    with pytest.raises(InvalidRequest) as caught:
        Issuer(**{"url": "https://issuer.example", "audience": "a", "admins": ("b",), **options})
    assert caught.value.param == param


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("COSERVE_OIDC_ADMINS", "ada, groups=admins")
    monkeypatch.setenv("COSERVE_OIDC_ISSUER", "")
    assert Settings().oidc_admins == ("ada", "groups=admins")
    assert Settings().oidc_issuer is None
