"""What belongs to one project does not exist for another; nothing that a client names is fetched."""

from __future__ import annotations

import socket
import time

import openai
import pytest

from coserve.service.auth.projects import NewProject
from tests.service.conftest import openai_client, start
from tests.service.tenants import make_tenants

DATA = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n' * 10


@pytest.fixture(scope="module")
def tenants(tmp_path_factory):
    """Clients of two projects on one server."""
    home = tmp_path_factory.mktemp("home")
    keys = make_tenants(home, [NewProject("one"), NewProject("two")])
    server = start(home)
    with openai_client(server, keys[0][1]) as one, openai_client(server, keys[1][1]) as two:
        yield one, two
    server.stop()


def test_files_are_their_projects(tenants):
    one, two = tenants
    file = one.files.create(file=("a.jsonl", DATA), purpose="fine-tune")
    assert file.id in [f.id for f in one.files.list()]
    assert file.id not in [f.id for f in two.files.list()]
    for attempt in (two.files.retrieve, two.files.content, two.files.delete):
        with pytest.raises(openai.NotFoundError):
            attempt(file.id)
    with pytest.raises(openai.BadRequestError) as refused:
        two.fine_tuning.jobs.create(model="base", training_file=file.id)
    assert refused.value.code == "file_not_found"
    assert one.files.content(file.id).read() == DATA


def test_jobs_and_the_models_they_make_are_their_projects(tenants):
    one, two = tenants
    file = one.files.create(file=("a.jsonl", DATA), purpose="fine-tune")
    job = one.fine_tuning.jobs.create(model="base", training_file=file.id, suffix="mine")
    deadline = time.monotonic() + 20
    while (job := one.fine_tuning.jobs.retrieve(job.id)).status != "succeeded" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.status == "succeeded"
    assert job.id not in [j.id for j in two.fine_tuning.jobs.list()]
    jobs = two.fine_tuning.jobs
    for attempt in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            attempt(job.id)
    model = job.fine_tuned_model
    assert model in [m.id for m in one.models.list()]
    assert model not in [m.id for m in two.models.list()]
    messages = [{"role": "user", "content": "Hi"}]
    assert one.chat.completions.create(model=model, messages=messages).choices
    for attempt in (
        lambda: two.models.retrieve(model),
        lambda: two.models.delete(model),
        lambda: two.chat.completions.create(model=model, messages=messages),
        lambda: two.completions.create(model=model, prompt="Hi"),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()


def test_no_url_that_a_client_names_is_fetched(tenants):
    one, _ = tenants
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.3)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/image.png"
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "file", "file": {"file_url": url}},
            {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        ):
            with pytest.raises(openai.BadRequestError):
                one.chat.completions.create(model="base", messages=[{"role": "user", "content": [part]}])
        with pytest.raises(TimeoutError):
            bait.accept()
