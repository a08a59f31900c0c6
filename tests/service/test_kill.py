"""A server killed in mid-job comes back and finishes the job from its last checkpoint."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import openai
import pytest

from tests.service.fake_training import CHECKPOINT_EVERY
from tests.service.live import KEY
from tests.service.test_chat_api import wait_until
from tests.service.test_files_api import DATA, upload
from tests.service.test_fine_tuning_api import wait
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]


@contextmanager
def running(model: str, home: Path) -> Iterator[tuple[subprocess.Popen, openai.OpenAI]]:
    command = [sys.executable, "-m", "tests.service.live", model, str(home), "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        yield process, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=20)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def trained_steps(client: openai.OpenAI, job_id: str) -> list[int]:
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=1000))[::-1]
    return [event.data["step"] for event in events if event.type == "metrics"]


@pytest.mark.parametrize("model", ["fake", "tiny"])
def test_a_killed_server_finishes_its_job(tmp_path, model):
    options, every = {"max_steps": 12, "learning_rate": 0.1}, CHECKPOINT_EVERY
    if model == "tiny":
        model = str(tiny_checkpoint(tmp_path / "model"))
        every = 5
        options = {"max_steps": 150, "checkpoint_every": every, "batch_size": 4, "n_epochs": 1000}
    home = tmp_path / "home"
    with running(model, home) as (process, client):
        hyperparameters = {"type": "supervised", "supervised": {"hyperparameters": options}}
        job = client.fine_tuning.jobs.create(
            model="base", training_file=upload(client, data=DATA * 8).id, method=hyperparameters
        )
        wait_until(lambda: client.fine_tuning.jobs.checkpoints.list(job.id).data, 30)
        process.send_signal(signal.SIGKILL)
        process.wait()

    with running(model, home) as (process, client):
        before = client.fine_tuning.jobs.retrieve(job.id)
        assert before.status in ("validating_files", "queued", "running")
        done = wait(client, job.id, "succeeded", "failed", seconds=60)
        assert done.status == "succeeded", done.error
        steps = trained_steps(client, job.id)
        assert steps.count(1) == 1, "it began anew"
        assert steps[-1] == options["max_steps"]
        # Steps that were not yet on record when the kill came are missing there, or told again: in one place,
        # which is where a checkpoint was...
        resumed = [after for step, after in pairwise(steps) if after != step + 1]
        assert len(resumed) <= 1
        assert all((first - 1) % every == 0 for first in resumed), resumed
        if model != "fake":  # ... but the results have every step once
            table = client.files.content(done.result_files[0]).text.splitlines()
            told = [int(float(row["step"])) for row in csv.DictReader(table)]
            assert told == list(range(1, options["max_steps"] + 1))
        reply = client.completions.create(model=done.fine_tuned_model, prompt="a", max_tokens=2)
        assert reply.usage.completion_tokens > 0
        process.terminate()
        assert process.wait(10) == 0
