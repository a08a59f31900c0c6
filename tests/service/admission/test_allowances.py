"""What a project may keep: bytes of files, and batches that are not over."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from coserve.service.auth.projects import NewProject
from tests.service.conftest import openai_client, start
from tests.service.tenants import make_tenants
from tests.service.test_batches_api import chat, create, wait

BYTES = 10_000
TIERS = f"""
tiers:
  small: {{ files: {{ bytes: {BYTES} }}, batch: {{ open_batches: 2 }} }}
  large: {{ priority: 1 }}
"""


@pytest.fixture(params=["sqlite", "postgres"])
def clients(request, tmp_path):
    """Of two projects of the small tier and one of the large one."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    (tmp_path / "tiers.yaml").write_text(TIERS)
    projects = [NewProject(name, tier=tier) for name, tier in (("a", "small"), ("b", "small"), ("c", "large"))]
    keys = make_tenants(tmp_path, projects, database_url=url)
    server = start(tmp_path, database_url=url)
    clients = [openai_client(server, key) for _, key in keys]
    clients[0].server = server
    yield clients
    server.stop()


def put(client, size):
    return client.files.create(file=("a.jsonl", io.BytesIO(b"x" * size)), purpose="batch")


def test_bytes_of_files(clients):
    one, other, large = clients
    with pytest.raises(openai.APIStatusError) as refused:
        put(one, BYTES + 1)
    assert (refused.value.status_code, refused.value.code) == (413, "rate_limit_exceeded")
    assert "the tier 'small': Limit 10000 bytes of all files, Requested 10001" in refused.value.message
    kept = put(one, 6000)
    put(one, 4000)
    with pytest.raises(openai.RateLimitError) as refused:
        put(one, 1)
    assert refused.value.code == "insufficient_quota"
    assert "Limit 10000 bytes, Used 10000, Requested 1. Delete files" in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"
    folder = one.server._settings.files_directory
    assert len(list(folder.iterdir())) == 2, "what was refused is not kept"
    one.files.delete(kept.id)
    assert put(one, 6000).bytes == 6000
    assert put(other, BYTES) and put(large, 10 * BYTES)


def test_uploads_at_once_are_no_way_around_it(clients):
    def attempt(_):
        try:
            return put(clients[0], 4000).bytes
        except openai.RateLimitError:
            return 0

    with ThreadPoolExecutor(6) as at_once:
        assert sum(at_once.map(attempt, range(6))) == 8000


def test_batches_that_are_not_over(clients):
    one, other, _ = clients
    one.server.engine.delay = 0.05
    batches = [create(one, [chat("1")]) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as refused:
        create(one, [chat("1")])
    assert "The tier 'small' allows 2 batches at once that are not over." in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert create(other, [chat("1")]).status == "validating"
    wait(one, batches[0])
    assert create(one, [chat("1")]).status == "validating"
