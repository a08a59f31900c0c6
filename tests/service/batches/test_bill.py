"""A batch's request is on the bill when it is done, however often it was run."""

import asyncio

import pytest

from coserve.service.batches import batches
from coserve.service.batches.results import Results
from tests.service.conftest import openai_client, start
from tests.service.ledger.stubs import RATES, bill, entry, opened
from tests.service.test_batches_api import chat, check_bill, create, wait


def test_only_what_is_done_is_billed_and_only_once(tmp_path):
    async def run():
        async with opened(tmp_path) as (database, ledger):
            for outcome in ("disconnected", "failed", "completed", "completed"):
                line = ledger.begin(entry("batch-1-0", batch_id="batch-1"), RATES)
                line.delivered(10)
                line.close(outcome, generated_tokens=10)
            ledger.begin(entry("batch-1-1", batch_id="batch-1"), RATES).delivered(5)  # and then it is killed
            await ledger.flush()
            return await bill(database)

    rows = asyncio.run(run())
    assert list(rows) == ["batch-1-0"]
    assert (rows["batch-1-0"].outcome, rows["batch-1-0"].cost) == ("completed", 100 * 150 + 10 * 600)


@pytest.mark.parametrize("after_writing", [False, True])
def test_a_disk_that_fails_between_the_bill_and_the_result_ends_nothing(tmp_path, monkeypatch, after_writing):
    append, failed = Results.append, []

    def fail_once(self, index, result):
        if index == 5 and not failed:
            failed.append(index)
            if after_writing:
                append(self, index, result)
            raise OSError("the disk is full")
        append(self, index, result)

    monkeypatch.setattr(Results, "append", fail_once)
    monkeypatch.setattr(batches, "RETRY_SECONDS", 0.05)
    server = start(tmp_path)
    client = openai_client(server)
    done = wait(client, create(client, [chat(f"{i}") for i in range(10)]))
    assert (done.status, done.request_counts.completed, failed) == ("completed", 10, [5])
    server.stop()
    check_bill(tmp_path, done.id, 10)
