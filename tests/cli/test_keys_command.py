"""`coserve keys` and `coserve projects`: on the database of a home, and over HTTP, with the same words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from coserve.service import Settings
from tests.service.admin import http_client, new_key, soon
from tests.service.conftest import start

PROJECTS = "/v1/organization/projects"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("COSERVE_DATABASE_URL", "COSERVE_TIERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server, its home and an admin key."""
    home = tmp_path_factory.mktemp("home")
    server = start(home)
    admin, _ = new_key(home, scopes=("admin",))
    with http_client(server, admin) as http:
        assert soon(lambda: http.get(PROJECTS).status_code == 200)
    yield server, home, admin
    server.stop()


@pytest.fixture(params=["database", "http"])
def where(request, running) -> list[str]:
    """The options that lead to the running server's keys, one way or the other."""
    server, home, admin = running
    return ["--home", str(home)] if request.param == "database" else ["--url", server.url, "--api-key", admin]


def answer(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def find(key: str, listed: list[dict]) -> dict:
    """The listed key that begins as this one does."""
    (found,) = [one for one in listed if key.startswith(one["redacted_value"].removesuffix("..."))]
    return found


def test_a_key_is_printed_alone_and_opens_a_running_server(run, running, where):
    server = running[0]
    result = run("keys", "create", "--name", "Ann's", "--scope", "models", "--expires", "30d", *where)
    key = result.stdout.strip()
    assert result.stdout == f"{key}\n" and key.startswith("sk-cs-")
    assert "Ann's" in result.stderr and key not in result.stderr
    with http_client(server, key) as http:
        assert soon(lambda: http.get("/v1/models").status_code == 200)
        (listed,) = [
            one for one in answer(run("keys", "list", "--json", *where)) if key.startswith(one["redacted_value"][:10])
        ]
        assert listed["scopes"] == ["models"]
        assert abs(listed["expires_at"] - time.time() - 30 * 86400) < 100
        shown = run("keys", "list", *where).output
        assert listed["id"] in shown and key not in shown
        assert run("keys", "revoke", listed["id"], *where).output == f"{listed['id']} (Ann's) is revoked\n"
        assert soon(lambda: http.get("/v1/models").status_code == 401)
    assert run("keys", "revoke", listed["id"], *where).exit_code == 2


def test_projects_are_made_changed_and_archived(run, where):
    options = ["--tier", "free", "--budget", "12.5", "--weight", "2", "--limit", "requests_per_minute=100"]
    options += ["--limit", "tokens_per_day=unlimited"]
    made = answer(run("projects", "create", "--name", "Team", *options, "--json", *where))
    assert (made["tier"], made["budget"], made["weight"]) == ("free", 12.5, 2)
    assert made["limits"] == {"requests_per_minute": 100, "tokens_per_day": "unlimited"}
    change = ["--tier", "none", "--budget", "none", "--limit", "tokens_per_day=tier"]
    changed = answer(run("projects", "update", made["id"], *change, "--json", *where))
    assert (changed["tier"], changed["budget"], changed["limits"]) == (None, None, {"requests_per_minute": 100})
    key = answer(run("keys", "create", "--name", "k", "--project", made["id"], "--model", "base", "--json", *where))
    assert (key["project_id"], key["models"]) == (made["id"], ["base"])
    assert [one["id"] for one in answer(run("keys", "list", "--project", made["id"], "--json", *where))] == [key["id"]]
    assert made["id"] in run("projects", "list", *where).output
    assert answer(run("projects", "archive", made["id"], "--json", *where))["status"] == "archived"
    assert made["id"] not in run("projects", "list", *where).output
    assert made["id"] in run("projects", "list", "--archived", *where).output


def test_an_admin_key_opens_the_administration(run, running, where):
    key = run("keys", "create", "--name", "boss", "--scope", "admin", *where).stdout.strip()
    with http_client(running[0], key) as http:
        assert soon(lambda: http.get(PROJECTS).status_code == 200)
    found = find(key, answer(run("keys", "list", "--json", *where)))
    assert run("keys", "revoke", found["id"], *where).exit_code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["keys", "create", "--name", "x", "--tier", "gold"], "gold"),
        (["keys", "create", "--name", "x", "--scope", "everything"], "scopes"),
        (["keys", "create", "--name", "x", "--scope", "admin", "--tier", "free"], "admin"),
        (["keys", "create", "--name", "x", "--expires", "soon"], "expires"),
        (["keys", "create", "--name", "x", "--expires", "1ms"], "--expires"),
        (["keys", "create", "--name", ""], "name"),
        (["keys", "revoke", "key-none"], "key-none"),
        (["projects", "create", "--name", "x", "--budget", "much"], "--budget"),
        (["projects", "create", "--name", "x", "--budget", "nan"], "--budget"),
        (["projects", "create", "--name", "x", "--weight", "inf"], "--weight"),
        (["projects", "create", "--name", "x", "--limit", "requests_per_minute"], "--limit"),
        (["projects", "create", "--name", "x", "--limit", "requests_per_hour=1"], "requests_per_hour"),
        (["projects", "update", "proj-default"], "nothing to change"),
    ],
)
def test_a_mistake_is_one_line_and_the_same_both_ways(run, where, command, words):
    result = run(*command, *where)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr and result.stderr.count("\n") == 1


def test_without_a_database_there_is_nothing_to_list_and_nothing_is_made(run, tmp_path):
    for command in (["keys", "list"], ["projects", "list"], ["projects", "update", "proj-default", "--weight", "2"]):
        assert "There is no coserve.db" in run(*command).stderr
    assert not (tmp_path / "home").exists()


def test_keys_can_be_made_before_the_first_start(run, tmp_path):
    key = run("keys", "create", "--name", "early").stdout.strip()
    server = start(tmp_path / "home", api_key=None)
    assert server.new_key is None
    with http_client(server, key) as http:
        assert http.get("/v1/models").status_code == 200
    server.stop()


def test_a_lost_secret_is_told_before_a_useless_key_is_made(run, tmp_path):
    run("keys", "create", "--name", "one")
    (tmp_path / "home" / "secret.key").unlink()
    result = run("keys", "create", "--name", "two")
    assert result.exit_code == 1 and "secret.key is missing" in result.stderr
    assert run("keys", "list").exit_code == 0


def test_a_database_elsewhere_is_named(run, tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'elsewhere.db'}"
    assert run("keys", "create", "--name", "one", "--database-url", url).exit_code == 0
    assert "one" in run("keys", "list", "--database-url", url).output
    assert run("keys", "list").exit_code == 2
    both = run("keys", "list", "--database-url", url, "--url", "http://127.0.0.1:1")
    assert both.exit_code == 2 and "give one of them" in both.stderr


def test_the_servers_of_the_environment_are_asked_unless_a_home_is_named(run, running, monkeypatch):
    server, home, _ = running
    monkeypatch.setenv("COSERVE_URL", server.url)
    monkeypatch.setenv("COSERVE_API_KEY", "sk-cs-nobody")
    refused = run("keys", "list")
    assert refused.exit_code == 1 and "not valid" in refused.stderr and "sk-cs-nobody" not in refused.output
    assert run("keys", "list", "--home", home).exit_code == 0


def test_tiers_are_those_of_the_file(run, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("tiers: {gold: {}}")
    assert run("keys", "create", "--name", "a", "--tier", "gold", "--tiers", file).exit_code == 0
    assert "there are gold" in run("keys", "create", "--name", "a", "--tier", "free", "--tiers", file).stderr


def test_the_commands_need_no_torch_and_no_server(tmp_path):
    code = (
        "import sys\nfrom coserve.cli import app\n"
        "try: app(['keys', 'create', '--name', 'a'])\nexcept SystemExit as end: assert not end.code\n"
        "sys.exit(bool({'torch', 'uvicorn'} & set(sys.modules)))"
    )
    environment = {**os.environ, "COSERVE_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    assert Settings(home=tmp_path).directory == tmp_path
