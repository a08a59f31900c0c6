"""Several servers on one database: what one of them works on, the others leave alone."""

import shutil
import time

import openai
import pytest

from tests.service.conftest import openai_client, start
from tests.service.test_batches_api import chat, create, wait
from tests.service.test_chat_api import wait_until
from tests.service.test_fine_tuning_api import SLOW
from tests.service.test_fine_tuning_api import create as create_job
from tests.service.test_fine_tuning_api import wait as wait_for_job


def test_a_server_that_starts_takes_over_nothing_of_another(tmp_path):
    homes = [tmp_path / "one", tmp_path / "two"]
    url = f"sqlite+aiosqlite:///{tmp_path}/shared.db"
    first = start(homes[0], database_url=url)
    client = openai_client(first)
    job = create_job(client, hyperparameters=SLOW)
    first.engine.delay = 0.02
    batch = create(client, [chat(f"{i}") for i in range(100)])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed)
    homes[1].mkdir()
    shutil.copy(homes[0] / "secret.key", homes[1])
    second = start(homes[1], database_url=url)
    assert wait(client, batch).request_counts.completed == 100
    wait_for_job(client, job.id, "succeeded")
    assert second.engine.requests == []
    assert list((homes[1] / "jobs").iterdir()) == []
    first.stop()
    second.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def two(request, tmp_path, monkeypatch):
    """Two servers on one database, and a client of each. They look often for what the other was asked."""
    for module in ("jobs", "batches.batches"):
        monkeypatch.setattr(f"coserve.service.{module}.FOLLOW_SECONDS", 0.1)
    postgres = request.param == "postgres"
    url = request.getfixturevalue("postgres_url") if postgres else f"sqlite+aiosqlite:///{tmp_path}/shared.db"
    homes = [tmp_path / "one", tmp_path / "two"]
    first = start(homes[0], database_url=url)
    homes[1].mkdir()
    shutil.copy(homes[0] / "secret.key", homes[1])
    second = start(homes[1], database_url=url)
    yield first, openai_client(first), openai_client(second)
    first.stop()
    second.stop()


LONG = {"learning_rate": 0.02, "max_steps": 1000}  # 20 s


def steps(client, job):
    return len([e for e in client.fine_tuning.jobs.list_events(job.id, limit=1000) if e.type == "metrics"])


def test_a_job_is_cancelled_by_whichever_server_is_asked(two):
    first, here, there = two
    job = create_job(here, hyperparameters=LONG)
    wait_until(lambda: steps(here, job))
    assert there.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    wait_until(lambda: not first._service.jobs._alive, 3)
    with pytest.raises(openai.ConflictError):
        here.fine_tuning.jobs.cancel(job.id)


def test_a_job_is_paused_and_resumed_by_whichever_server_is_asked(two):
    first, here, there = two
    job = create_job(here, hyperparameters={**LONG, "max_steps": 40})
    wait_until(lambda: steps(here, job))
    post = there.post
    assert post(f"/fine_tuning/jobs/{job.id}/pause", cast_to=object)["status"] == "paused"
    wait_until(lambda: first._service.jobs._paused == {job.id}, 3)
    time.sleep(0.1)  # the step under way
    done = steps(here, job)
    time.sleep(0.2)
    assert steps(here, job) == done
    post(f"/fine_tuning/jobs/{job.id}/resume", cast_to=object)
    wait_for_job(there, job.id, "running")
    wait_for_job(there, job.id, "succeeded")


def test_a_batch_is_cancelled_by_whichever_server_is_asked(two):
    first, here, there = two
    first.engine.delay = 0.05
    batch = create(here, [chat(f"{i}") for i in range(1000)])
    wait_until(lambda: here.batches.retrieve(batch.id).request_counts.completed)
    assert there.batches.cancel(batch.id).status == "cancelling"
    done = wait(there, batch, seconds=10)
    assert done.status == "cancelled"
    assert 0 < done.request_counts.completed < 1000
