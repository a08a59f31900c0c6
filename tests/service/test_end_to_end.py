"""The whole way with the real engine and trainer on a tiny model, through OpenAI's client."""

import io
import zipfile
from collections.abc import Iterator

import openai
import pytest
import torch

from coserve.engine import Engine
from coserve.service import Server, Settings
from tests.service.conftest import KEY, openai_client
from tests.service.test_files_api import DATA, upload
from tests.service.test_fine_tuning_api import wait
from tests.tiny import tiny_checkpoint

HELLO = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    home = tmp_path_factory.mktemp("home")
    model = tiny_checkpoint(home / "tiny")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = Settings(home=home, port=0, api_key=KEY, drain_seconds=1)
    server = Server(settings, lambda: Engine.from_pretrained(model, home=home))
    server.start()
    yield openai_client(server)
    server.stop()
    torch.set_num_threads(threads)


def test_chat_and_completions(live):
    whole = live.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, temperature=0)
    stream = live.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert last.usage == whole.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    several = live.completions.create(model="tiny", prompt=["a b", "c"], n=2, max_tokens=4, logprobs=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs.token_logprobs for choice in several.choices)


def test_the_context_is_a_limit(live):
    with pytest.raises(openai.BadRequestError) as caught:
        live.completions.create(model="tiny", prompt=[5] * 100_000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_a_model_is_tuned_and_served(live):
    file = upload(live, data=DATA * 16)
    job = live.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        validation_file=file.id,
        suffix="abc",
        seed=1,
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": 5,
                    "batch_size": 4,
                    "learning_rate": 0.02,
                    "checkpoint_every": 5,
                }
            },
        },
    )
    done = wait(live, job.id, "succeeded", "failed", seconds=60)
    assert done.status == "succeeded", done.error
    assert done.trained_tokens > 0
    assert done.fine_tuned_model.startswith("ft:tiny:abc:")

    options = {"messages": HELLO, "max_tokens": 4, "temperature": 0}
    tuned = live.chat.completions.create(model=done.fine_tuned_model, **options)
    assert tuned.choices[0].message.content.startswith("b")  # what the data says

    names = {}
    for file_id in done.result_files:
        names[live.files.retrieve(file_id).filename] = live.files.content(file_id).read()
    table = names["metrics.csv"].decode().splitlines()
    assert "train_loss" in table[0]
    assert len(table) > 1
    assert "adapter_config.json" in str(zipfile.ZipFile(io.BytesIO(names["adapter.zip"])).namelist())

    events = list(live.fine_tuning.jobs.list_events(job.id, limit=100))
    losses = [event.data["train_loss"] for event in events[::-1] if event.type == "metrics"]
    assert losses[-1] < losses[0]
    checkpoints = list(live.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints
    assert checkpoints[0].step_number >= checkpoints[-1].step_number

    assert live.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        live.chat.completions.create(model=done.fine_tuned_model, **options)


def test_a_job_that_cannot_train_says_why(live):
    bad = upload(live, data=DATA + b'{"messages": []}\n')
    with pytest.raises(openai.BadRequestError, match="line 2"):
        live.fine_tuning.jobs.create(model="tiny", training_file=bad.id)
