"""The administration: OpenAI's own client reads it; mistakes are one clear line; every change is told and counts."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import openai
import pytest

from coserve.service.auth.watch import log as watch_log
from coserve.service.auth.watch import watch_keys
from coserve.service.database import Database, sqlite_url
from coserve.service.tables import UsageDayRow, UsageRow
from tests.service.admin import admin_client, http_client, new_key, soon
from tests.service.conftest import openai_client, start

PROJECTS = "/v1/organization/projects"
DAY = 86400


@pytest.fixture(scope="module")
def admin_key(home, server):
    key, _ = new_key(home, name="administrator", scopes=("admin",))
    with http_client(server, key) as http:
        assert soon(lambda: http.get(PROJECTS).status_code == 200)
    return key


@pytest.fixture(scope="module")
def admin(server, admin_key):
    with admin_client(server, admin_key) as client:
        yield client.admin.organization


@pytest.fixture(scope="module")
def http(server, admin_key):
    with http_client(server, admin_key) as http:
        yield http


@pytest.fixture
def project(http) -> str:
    return http.post(PROJECTS, json={"name": "A project"}).json()["id"]


def make(http, project: str, **fields: object) -> dict:
    reply = http.post(f"{PROJECTS}/{project}/api_keys", json={"name": "A key", **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def is_open(server, key: str) -> bool:
    with http_client(server, key) as http:
        return http.get("/v1/models").status_code == 200


def test_openais_client_makes_changes_and_archives_projects(admin):
    own = {"tier": "free", "weight": 2, "budget": 12.5, "limits": {"requests_per_minute": 3}}
    made = admin.projects.create(name="Team", extra_body=own)
    assert (made.object, made.name, made.status) == ("organization.project", "Team", "active")
    assert {name: getattr(made, name) for name in own} == own
    changed = admin.projects.update(made.id, name="Crew", extra_body={"budget": None})
    assert (changed.name, changed.budget, changed.tier) == ("Crew", None, "free")
    assert admin.projects.retrieve(made.id).name == "Crew"
    assert admin.projects.archive(made.id).status == "archived"
    assert made.id not in {project.id for project in admin.projects.list()}
    assert made.id in {project.id for project in admin.projects.list(include_archived=True)}
    assert admin.projects.retrieve(made.id).archived_at is not None
    with pytest.raises(openai.ConflictError, match="is archived"):
        admin.projects.update(made.id, name="Again")


def test_pages_follow_each_other(admin, http):
    ids = [http.post(PROJECTS, json={"name": f"Page {i}"}).json()["id"] for i in range(3)]
    assert [project.id for project in admin.projects.list(limit=1)][:3] == ids[::-1]


def test_a_key_is_shown_once_and_counts_at_once(admin, http, server, project):
    made = make(http, project, tier="developer", up_to="enterprise", scopes=["models", "files"])
    assert is_open(server, made["value"])
    (listed,) = admin.projects.api_keys.list(project)
    found = admin.projects.api_keys.retrieve(made["id"], project_id=project)
    for key in (listed, found):
        assert (key.id, key.redacted_value) == (made["id"], made["value"][:10] + "...")
        assert (key.tier, key.up_to, key.scopes, key.models) == ("developer", "enterprise", ["models", "files"], None)
        assert key.owner.service_account.id == project
        assert made["value"] not in key.to_json()
    deleted = admin.projects.api_keys.delete(made["id"], project_id=project)
    assert (deleted.deleted, deleted.object) == (True, "organization.project.api_key.deleted")
    assert not is_open(server, made["value"])
    with pytest.raises(openai.NotFoundError):
        admin.projects.api_keys.delete(made["id"], project_id=project)


def test_a_key_sees_the_models_that_it_was_made_for(http, server, home, project):
    names = {"base": ["base"], "another": [], "*": ["base"]}
    for name, seen in names.items():
        client = openai_client(server, make(http, project, models=[name])["value"])
        assert [model.id for model in client.models.list()] == seen
        if not seen:
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="base", prompt="a")


def test_keys_of_another_project_are_not_found(http, project):
    made = make(http, "proj-default")
    for method in ("GET", "DELETE"):
        assert http.request(method, f"{PROJECTS}/{project}/api_keys/{made['id']}").status_code == 404


def test_an_archived_projects_keys_are_closed_at_once(http, server, project):
    made = make(http, project)
    assert is_open(server, made["value"])
    http.post(f"{PROJECTS}/{project}/archive")
    assert not is_open(server, made["value"])
    assert http.post(f"{PROJECTS}/{project}/api_keys", json={"name": "late"}).status_code == 409
    assert http.get(f"{PROJECTS}/{project}/api_keys").json()["data"][0]["owner_project_access"] == "inactive"


def test_the_default_project_stays(http):
    reply = http.post(f"{PROJECTS}/proj-default/archive")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "default_project")


def test_an_expired_key_is_closed(http, server, project):
    made = make(http, project, expires_at=int(time.time()) + 2)
    assert soon(lambda: not is_open(server, made["value"]))


def test_rate_limits_are_openais_object(admin, project):
    (limit,) = admin.projects.rate_limits.list_rate_limits(project)
    assert (limit.object, limit.max_requests_per_1_minute) == ("project.rate_limit", None)
    change = {"max_requests_per_1_minute": 7, "extra_body": {"max_concurrent_requests": "unlimited"}}
    changed = admin.projects.rate_limits.update_rate_limit(limit.id, project_id=project, **change)
    assert (changed.max_requests_per_1_minute, changed.max_concurrent_requests) == (7, "unlimited")
    again = {"extra_body": {"max_requests_per_1_minute": None}}  # the tier's
    changed = admin.projects.rate_limits.update_rate_limit(limit.id, project_id=project, **again)
    assert (changed.max_requests_per_1_minute, changed.max_concurrent_requests) == (None, "unlimited")
    assert admin.projects.retrieve(project).limits == {"concurrent_requests": "unlimited"}
    with pytest.raises(openai.NotFoundError):
        admin.projects.rate_limits.update_rate_limit("rl-other", project_id=project)


def test_admin_keys_open_the_administration_only(admin, server):
    made = admin.admin_api_keys.create(name="Second", expires_in_seconds=60)
    with http_client(server, made.value) as http:
        assert http.get(PROJECTS).status_code == 200
        assert http.get("/v1/models").status_code == 403
    assert made.id in {key.id for key in admin.admin_api_keys.list()}
    found = admin.admin_api_keys.retrieve(made.id)
    assert (found.object, found.expires_at - found.created_at) == ("organization.admin_api_key", 60)
    assert admin.admin_api_keys.delete(made.id).object == "organization.admin_api_key.deleted"
    with http_client(server, made.value) as http:
        assert http.get(PROJECTS).status_code == 401


def test_admin_keys_and_projects_keys_are_not_mixed_up(admin, http):
    admin_id = admin.admin_api_keys.create(name="Third").id
    assert admin_id not in {key.id for key in admin.projects.api_keys.list("proj-default")}
    assert http.delete(f"{PROJECTS}/proj-default/api_keys/{admin_id}").status_code == 404
    key_id = make(http, "proj-default")["id"]
    assert http.delete(f"/v1/organization/admin_api_keys/{key_id}").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\u0000b"}, "name"),
        ({"name": "a", "teir": "free"}, "teir"),
        ({"name": "a", "tier": "gold"}, "tier"),
        ({"name": "a", "up_to": "gold"}, "up_to"),
        ({"name": "a", "scopes": ["everything"]}, "scopes"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["admin"]}, "scopes"),
        ({"name": "a", "scopes": ["all", "admin"]}, "scopes"),
        ({"name": "a", "models": []}, "models"),
        ({"name": "a", "models": [""]}, "models"),
        ({"name": "a", "expires_at": 1}, "expires_at"),
        ({"name": "a", "expires_at": 10**18}, "expires_at"),
        ({"name": "a", "expires_at": "tomorrow"}, "expires_at"),
    ],
)
def test_mistakes_about_a_key_are_one_line_with_their_field(http, body, param):
    check(http.post(f"{PROJECTS}/proj-default/api_keys", json=body), param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": None}, "name"),
        ({"name": "a", "budgets": 3}, "budgets"),
        ({"name": "a", "budget": -1}, "budget"),
        ({"name": "a", "budget": 1e300}, "budget"),
        ({"name": "a", "weight": 0}, "weight"),
        ({"name": "a", "weight": "heavy"}, "weight"),
        ({"name": "a", "weight": 1e300}, "weight"),
        ({"name": "a", "weight": 1e-300}, "weight"),
        ({"name": "a", "weight": 10**400}, "weight"),
        ({"name": "a", "budget": 10**400}, "budget"),
        ({"name": "a", "tier": "gold"}, "tier"),
        ({"name": "a", "limits": {"requests_per_hour": 1}}, "limits"),
        ({"name": "a", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"name": "a", "limits": {"requests_per_minute": True}}, "limits.requests_per_minute"),
        ({"name": "a", "limits": {"requests_per_minute": 10**400}}, "limits.requests_per_minute"),
        ({"name": "a", "limits": {"concurrent_requests": 10**18 + 1}}, "limits.concurrent_requests"),
        ({"name": "a", "limits": {"requests_per_minute": "tier"}}, "limits.requests_per_minute"),
    ],
)
def test_mistakes_about_a_project_are_one_line_with_their_field(http, project, body, param):
    check(http.post(PROJECTS, json=body), param)
    check(http.post(f"{PROJECTS}/{project}", json=body), param)


def test_a_name_is_needed_for_a_new_project_only(http, project):
    check(http.post(PROJECTS, json={"weight": 2}), "name")
    assert http.post(f"{PROJECTS}/{project}", json={"weight": 2}).json()["name"] == "A project"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        (f"{PROJECTS}?limit=0", "limit"),
        (f"{PROJECTS}?after=nobody", "after"),
        (f"{PROJECTS}?include_archived=yes", "include_archived"),
        ("/v1/organization/audit_logs?effective_at[gt]=yesterday", "effective_at[gt]"),
        ("/v1/organization/audit_logs?actor_emails[]=a", "actor_emails[]"),
        ("/v1/organization/costs", "start_time"),
        ("/v1/organization/costs?start_time=10&end_time=10", "end_time"),
        ("/v1/organization/costs?start_time=10&bucket_width=1h", "bucket_width"),
        ("/v1/organization/costs?start_time=10&group_by=user_id", "group_by"),
        ("/v1/organization/usage/completions?start_time=10&page=next", "page"),
        ("/v1/organization/usage/completions?start_time=10&limit=32", "limit"),
        ("/v1/organization/usage/completions?start_time=10&user_ids[]=a", "user_ids[]"),
    ],
)
def test_mistakes_in_a_query_are_one_line_with_their_parameter(http, path, param):
    check(http.get(path), param)


def check(reply, param: str) -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert "\n" not in error["message"] and len(error["message"]) < 300


def test_every_change_is_in_the_audit_log_with_who_did_it(admin, http, project):
    (me,) = [key.id for key in admin.admin_api_keys.list() if key.name == "administrator"]
    key = make(http, project)
    http.delete(f"{PROJECTS}/{project}/api_keys/{key['id']}")
    http.post(f"{PROJECTS}/{project}", json={"budget": 1.5})
    http.post(f"{PROJECTS}/{project}/archive")
    events = list(admin.audit_logs.list(project_ids=[project], limit=2))
    assert [event.type for event in events] == [
        "project.archived",
        "project.updated",
        "api_key.deleted",
        "api_key.created",
        "project.created",
    ]
    assert {event.actor.api_key.id for event in events} == {me}
    assert {(event.project.id, event.project.name) for event in events} == {(project, "A project")}
    assert events[1].project_updated.changes_requested.budget == 1.5
    assert (events[3].api_key_created.id, events[3].api_key_created.data.scopes) == (key["id"], ["all"])
    assert key["value"] not in "".join(event.to_json() for event in events)


def test_the_audit_log_is_filtered(admin, project):
    (made,) = admin.audit_logs.list(project_ids=[project], event_types=["project.created"])
    at = made.effective_at
    for times, count in (({"gte": at, "lte": at}, 1), ({"gt": at}, 0), ({"lt": at}, 0)):
        found = list(admin.audit_logs.list(project_ids=[project], effective_at=times))
        assert len(found) == count


def test_tiers_are_listed_and_read_again_while_the_server_runs(home, http, caplog):
    listed = http.get("/v1/organization/tiers").json()
    assert [tier["id"] for tier in listed["data"]] == ["free", "developer", "enterprise"]
    assert listed["data"][1]["price"] == {"input": 0.1, "cached_input": 0.05, "output": 0.4}
    assert listed["flex"]["price_factor"] == 0.5
    file = home / "tiers.yaml"
    try:
        file.write_text("tiers: {gold: {priority: 1, ttft: 500ms}}")
        reply = http.post("/v1/organization/tiers/reload").json()
        assert [(tier["id"], tier["ttft"]) for tier in reply["data"]] == [("gold", 0.5)]
        file.write_text("tiers: {gold: {priority: high}}")
        reply = http.post("/v1/organization/tiers/reload")
        assert reply.status_code == 400
        assert f"{file}: tiers.gold.priority: " in reply.json()["error"]["message"]
        assert len([record for record in caplog.records if "tiers stay as they were" in record.getMessage()]) == 1
        assert [tier["id"] for tier in http.get("/v1/organization/tiers").json()["data"]] == ["gold"]
    finally:
        file.unlink()
        http.post("/v1/organization/tiers/reload")


def used(**fields: object) -> UsageRow:
    row = {
        "endpoint": "chat",
        "project_id": "proj-a",
        "key_id": "key-a",
        "tier": "free",
        "terms": "default",
        "model": "base",
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 5,
        "generated_tokens": 5,
        "trained_tokens": 0,
        "latency_ms": 1.0,
        "outcome": "completed",
        "cost": 1_000_000_000,
    }
    return UsageRow(**{**row, **fields})


@pytest.fixture(scope="module")
def usage(home, server) -> int:
    """Usage on two days; returns the first one's first second."""
    first = 20_000 * DAY
    day = {"endpoint": "chat", "project_id": "proj-b", "key_id": "key-b", "tier": "free", "terms": "flex"}
    day |= {"model": "base", "adapter": "", "upstream": "", "requests": 7, "prompt_tokens": 70, "cached_tokens": 0}
    day |= {"completion_tokens": 35, "generated_tokens": 35, "trained_tokens": 0, "cost": 3_500_000_000}
    rows = [
        used(id="1", created_at=first + 10),
        used(id="2", created_at=first + 3700, adapter="ft:base:x", terms="batch"),
        used(id="3", created_at=first + DAY, endpoint="fine_tuning", trained_tokens=9, prompt_tokens=0),
        UsageDayRow(day=first + DAY, **day),
    ]

    async def write() -> None:
        database = Database(sqlite_url(home / "coserve.db"))
        async with database.write() as session:
            session.add_all(rows)
        await database.close()

    asyncio.run(write())
    return first


def test_usage_is_in_buckets_and_groups(admin, usage):
    whole = {"start_time": usage, "end_time": usage + 2 * DAY}
    one, two = admin.usage.completions(**whole).data
    assert (one.start_time, one.end_time) == (usage, usage + DAY)
    (sums,) = one.results
    assert (sums.num_model_requests, sums.input_tokens, sums.input_cached_tokens, sums.output_tokens) == (2, 20, 8, 10)
    assert [result.num_model_requests for result in two.results] == [7]  # training is no completion
    by_model = admin.usage.completions(**whole, group_by=["model", "batch"]).data[0].results
    assert {(result.model, result.batch) for result in by_model} == {("base", False), ("ft:base:x", True)}
    for only, requests in (
        ({"models": ["ft:base:x"]}, [1, 0]),
        ({"batch": False}, [1, 7]),
        ({"project_ids": ["proj-b"]}, [0, 7]),
        ({"api_key_ids": ["key-a"]}, [2, 0]),
    ):
        found = admin.usage.completions(**whole, **only).data
        assert [sum(result.num_model_requests for result in bucket.results) for bucket in found] == requests


def test_usage_comes_in_pages(admin, usage):
    asked = {"start_time": usage + 5, "end_time": usage + 7200, "bucket_width": "1h", "limit": 1}
    first = admin.usage.completions(**asked)
    assert (len(first.data), first.data[0].start_time, first.has_more) == (1, usage, True)
    second = admin.usage.completions(**asked, page=first.next_page)
    assert (second.data[0].start_time, second.has_more, second.next_page) == (usage + 3600, False, None)
    assert second.data[0].results[0].num_model_requests == 1


def test_costs_are_in_dollars(admin, usage):
    one, two = admin.usage.costs(start_time=usage, end_time=usage + 2 * DAY).data
    assert [bucket.results[0].amount.value for bucket in (one, two)] == [2.0, 4.5]
    assert one.results[0].amount.currency == "usd"
    grouped = admin.usage.costs(start_time=usage, end_time=usage + 2 * DAY, group_by=["line_item", "project_id"]).data
    lines = {(result.line_item, result.project_id): result.amount.value for result in grouped[1].results}
    assert lines == {("base, chat", "proj-b"): 3.5, ("base, fine_tuning", "proj-a"): 1.0}


def test_two_servers_on_one_database_agree(tmp_path):
    homes = [tmp_path / name for name in ("one", "two")]
    for home in homes:
        home.mkdir()
        (home / "secret.key").write_bytes(b"s" * 32)
    url = sqlite_url(tmp_path / "shared.db")
    servers = [start(home, database_url=url) for home in homes]
    admin, _ = new_key(homes[0], database_url=url, scopes=("admin",))
    with http_client(servers[0], admin) as one, http_client(servers[1], admin) as two:
        assert all(soon(lambda http=http: http.get(PROJECTS).status_code == 200) for http in (one, two))
        project = one.post(PROJECTS, json={"name": "Shared"}).json()["id"]
        keys = [make(one, project) for _ in range(2)]
        values = [key["value"] for key in keys]
        assert all(soon(lambda key=key: is_open(servers[1], key)) for key in values)
        two.delete(f"{PROJECTS}/{project}/api_keys/{keys[0]['id']}")
        assert not is_open(servers[1], values[0])
        assert soon(lambda: not is_open(servers[0], values[0]))
        two.post(f"{PROJECTS}/{project}/archive")
        assert soon(lambda: not is_open(servers[0], values[1]))
    for server in servers:
        server.stop()


def test_a_database_that_is_away_does_not_end_the_watching(monkeypatch, caplog):
    monkeypatch.setattr("coserve.service.auth.watch.EVERY_SECONDS", 0.001)
    caplog.set_level(logging.INFO, watch_log.name)
    looks = 0

    class Ring:
        async def refresh(self, _database: object) -> None:
            nonlocal looks
            looks += 1
            if 2 <= looks <= 4:
                raise ConnectionRefusedError

    async def run() -> None:
        task = asyncio.create_task(watch_keys(Ring(), None))
        while looks < 6:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    assert ["away" in caplog.messages[0], "back" in caplog.messages[1], len(caplog.messages)] == [True, True, 2]


def test_no_key_is_in_the_logs_or_the_files(tmp_path: Path, caplog):
    caplog.set_level(logging.DEBUG)
    server = start(tmp_path)
    admin, _ = new_key(tmp_path, scopes=("admin",))
    with http_client(server, admin) as http:
        assert soon(lambda: http.get(PROJECTS).status_code == 200)
        made = make(http, "proj-default")["value"]
        second = http.post("/v1/organization/admin_api_keys", json={"name": "b"}).json()["value"]
        told = [http.get(path).text for path in (PROJECTS, "/v1/organization/audit_logs")]
        told.append(http.get(f"{PROJECTS}/proj-default/api_keys").text)
    with pytest.raises(openai.AuthenticationError) as caught:
        openai_client(server, made + "x").models.list()
    server.stop()
    own = ("coserve", "uvicorn", "sqlalchemy", "alembic", "aiosqlite", "asyncio")
    logged = [record.getMessage() for record in caplog.records if record.name.split(".")[0] in own]
    stored = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    for key in (admin, made, second):
        assert not any(key in text for text in (*logged, *stored, str(caught.value), *told))
