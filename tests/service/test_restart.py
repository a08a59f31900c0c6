"""Keys, files, jobs and models outlive the server."""

import time

import openai
import pytest

from coserve.errors import Conflict, CoserveError
from coserve.service import Server, Settings
from coserve.service.server import AddressError
from tests.service.conftest import openai_client, start
from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import TRAINING
from tests.service.test_chat_api import wait_until
from tests.service.test_fine_tuning_api import SLOW, create, wait


def test_a_job_goes_on_where_it_was_and_models_are_served_again(tmp_path):
    first = start(tmp_path)
    client = openai_client(first)
    done = wait(client, create(client).id, "succeeded")
    paused = create(client, hyperparameters={"max_steps": 4, **SLOW})
    client.fine_tuning.jobs.pause(paused.id)
    running = create(client, hyperparameters={"max_steps": 10, **SLOW})
    wait_until(lambda: client.fine_tuning.jobs.checkpoints.list(running.id).data)
    first.stop()

    second = start(tmp_path)
    client = openai_client(second)
    assert done.fine_tuned_model in [model.id for model in client.models.list()]
    assert client.fine_tuning.jobs.retrieve(running.id).status != "succeeded"
    wait(client, running.id, "succeeded")
    events = list(client.fine_tuning.jobs.list_events(running.id))
    assert any(event.message.startswith("Resumed at step") for event in events)
    steps = [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(running.id)]
    assert steps == sorted(set(steps), reverse=True)
    assert client.fine_tuning.jobs.retrieve(paused.id).status == "paused"
    client.fine_tuning.jobs.resume(paused.id)
    wait(client, paused.id, "succeeded")
    second.stop()


def test_jobs_of_another_model_wait_for_it(tmp_path):
    first = start(tmp_path)
    client = openai_client(first)
    job = create(client, hyperparameters={"max_steps": 5, **SLOW})
    wait(client, job.id, "running")
    first.stop()
    second = start(tmp_path, FakeEngine("other"))
    time.sleep(0.2)
    assert openai_client(second).fine_tuning.jobs.retrieve(job.id).status == "running"
    second.stop()
    third = start(tmp_path)
    wait(openai_client(third), job.id, "succeeded")
    third.stop()


def test_a_stop_lets_running_replies_end_and_refuses_new_ones(tmp_path):
    import threading

    server = start(tmp_path, drain_seconds=5)
    server.engine.delay = 0.04
    client = openai_client(server)
    stream = client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hi"}], stream=True)
    text = next(iter(stream)).choices[0].delta.content or ""
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    time.sleep(0.1)
    with pytest.raises(openai.APIConnectionError):
        openai_client(server).models.list()
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    stopping.join()
    assert text == "Hello, world!"
    assert server.wait(0)


def test_a_stream_that_takes_too_long_is_cut_off(tmp_path):
    server = start(tmp_path, drain_seconds=1)
    server.engine.delay, server.engine.answer = 0.05, "x" * 900
    stream = openai_client(server).chat.completions.create(
        model="base", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    next(iter(stream))
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 4
    assert {request.id for request in server.engine.requests} <= server.engine.cancelled


def test_a_taken_port_is_told_before_anything_is_loaded(tmp_path):
    server = start(tmp_path)
    port = int(server.url.rsplit(":", 1)[1])
    other = Server(Settings(home=tmp_path / "b", port=port), lambda: pytest.fail("loaded"))
    with pytest.raises(AddressError, match=f"Port {port} on 127.0.0.1 is taken"):
        other.start()
    server.stop()


def test_one_server_for_one_home(tmp_path):
    server = start(tmp_path)
    with pytest.raises(Conflict, match="Another server runs"):
        start(tmp_path)
    server.stop()
    start(tmp_path).stop()


def test_a_home_that_cannot_be_used_is_told_clearly(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises((CoserveError, OSError)):
        start(tmp_path / "file")


def test_what_the_engine_cannot_load_is_raised_by_start(tmp_path):
    def broken():
        raise CoserveError("no such model")

    server = Server(Settings(home=tmp_path, port=0), broken, training=TRAINING)
    with pytest.raises(CoserveError, match="no such model"):
        server.start()
    server.stop()
