"""Several servers on one database: what one of them works on, the others leave alone."""

import shutil

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
