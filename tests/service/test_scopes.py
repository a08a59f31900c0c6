"""The door: every route there is wants a key, and a key that is for it."""

from __future__ import annotations

import re
import time

import pytest
from starlette.routing import Route

from coserve.errors import InvalidRequest
from coserve.service.app import ROUTES
from coserve.service.auth.door import OPEN_PATHS
from coserve.service.auth.keys import Key, KeyRing
from coserve.service.auth.projects import Project
from coserve.service.auth.scopes import ADMIN, ALL, SCOPES, check_scopes, scope_of
from tests.service.admin import http_client, new_key, soon

CLOSED = [(method, route) for route in ROUTES if route.path not in OPEN_PATHS for method in sorted(route.methods)]


def path_of(route: Route) -> str:
    return re.sub(r"\{[^}]*\}", "x", route.path)


@pytest.fixture(scope="module")
def keys(home, server):
    """A key for each scope, valid by now."""
    keys = {scope: new_key(home, scopes=(scope,))[0] for scope in SCOPES}
    for key in keys.values():
        with http_client(server, key) as http:
            assert soon(lambda http=http: http.get("/v1/nothing").status_code == 404)
    return keys


def opens(scope: str, route: Route) -> bool:
    """As the documentation says it: `all` is all but the administration."""
    needed = scope_of(path_of(route))
    return needed == scope or (scope == ALL and needed != ADMIN)


def test_every_route_needs_a_scope():
    for _, route in CLOSED:
        assert scope_of(path_of(route)) in SCOPES, f"{route.path} has no scope: see auth/scopes.py"


def test_no_route_opens_without_a_valid_key(server):
    for header in ("", "Bearer", "Bearer sk-cs-wrong", "Basic abc", "Bearer a.b.c"):
        with http_client(server, "x") as http:
            for method, route in CLOSED:
                reply = http.request(method, path_of(route), headers={"authorization": header})
                assert reply.status_code == 401, (method, route.path)


def test_no_route_opens_for_a_key_of_another_scope(server, keys):
    for scope, key in keys.items():
        with http_client(server, key) as http:
            for method, route in CLOSED:
                if opens(scope, route):
                    continue
                reply = http.request(method, path_of(route))
                assert reply.status_code == 403, (method, route.path, scope)
                if method != "HEAD":
                    assert reply.json()["error"]["code"] == "insufficient_permissions"


def test_a_key_opens_what_its_scope_says(server, keys):
    for scope, key in keys.items():
        with http_client(server, key) as http:
            for method, route in CLOSED:
                if method == "GET" and (
                    scope_of(route.path) == scope or (scope == ALL and scope_of(route.path) != ADMIN)
                ):
                    assert http.get(path_of(route)).status_code not in (401, 403), (route.path, scope)


def test_what_is_open_stays_open(server):
    with http_client(server, "x") as http:
        for path in OPEN_PATHS:
            assert http.get(path, headers={"authorization": ""}).status_code == 200


def test_nobody_gets_around_the_prefix(server, keys):
    with http_client(server, keys[ALL]) as http:
        for path in (
            "/v1/organization",
            "/v1/organization/",
            "/v1/%6frganization/projects",
            "/v1/organization/nothing",
        ):
            assert http.get(path).status_code == 403, path
        for path in ("//v1/organization/projects", "/V1/organization/projects", "/v1/./organization/../projects"):
            assert http.get(path).status_code in (403, 404), path


@pytest.mark.parametrize("scopes", [(), ("everything",), ("admin", "all"), ("inference", "admin"), ("",)])
def test_scopes_that_cannot_be_are_refused(scopes):
    with pytest.raises(InvalidRequest) as caught:
        check_scopes(scopes)
    assert caught.value.param == "scopes"


def test_keys_are_compared_in_constant_time_and_expire_to_the_second(monkeypatch):
    ring = KeyRing(b"s" * 32)
    compared = []
    monkeypatch.setattr("coserve.service.auth.keys.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    digest = ring.hash("a key")
    ring._keys[digest] = Key("key-1", digest, Project("p"), expires_at=int(time.time()) + 1000)
    assert ring.find("a key").id == "key-1"
    assert compared == [(digest, digest)]
    monkeypatch.setattr("coserve.service.auth.keys.now", lambda: ring._keys[digest].expires_at)
    assert ring.find("a key") is None
