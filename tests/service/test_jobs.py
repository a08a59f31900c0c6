"""The runner of jobs, where two things happen at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from coserve.service import Server, Settings
from coserve.service.admission.training import bill
from coserve.service.database import Database, sqlite_url
from coserve.service.jobs import Training, find_job
from coserve.service.tiers import Tiers, read_tiers
from tests.service.conftest import KEY, openai_client
from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import read_examples
from tests.service.test_batches_api import ledger
from tests.service.test_fine_tuning_api import create


async def cancel_elsewhere(home, job_id):
    """As another server on the same database does."""
    database = Database(sqlite_url(home / "coserve.db"))
    async with database.write() as session:
        row = await find_job(session, job_id)
        row.status = "cancelled"
        await bill(session, Tiers(read_tiers(None)), row, "cancelled")
    await database.close()


def test_a_job_that_is_cancelled_while_it_fails_to_start_is_billed_once(tmp_path):
    def refuse(engine, spec, listener):
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(asyncio.run, cancel_elsewhere(tmp_path, spec.id)).result()
        raise RuntimeError("no room")

    settings = Settings(home=tmp_path, port=0, api_key=KEY, drain_seconds=1)
    server = Server(settings, FakeEngine, training=Training(refuse, read_examples))
    server.start()
    with openai_client(server) as client:
        job = create(client)
        assert (job.status, job.error) == ("cancelled", None)
    server.stop()
    assert [row["outcome"] for row in ledger(tmp_path)] == ["cancelled"]
