"""/v1/fine_tuning/jobs through OpenAI's client, with the counting trainer."""

import time
from dataclasses import replace

import openai
import pytest

from tests.service.test_chat_api import wait_until
from tests.service.test_files_api import DATA, upload

SLOW = {"learning_rate": 0.1}  # which the counting trainer takes for the seconds of a step


def create(client, **options):
    hyperparameters = options.pop("hyperparameters", {"n_epochs": "auto"})
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return client.fine_tuning.jobs.create(model="base", training_file=upload(client).id, method=method, **options)


def wait(client, job_id, *wanted, seconds=10.0):
    end = time.monotonic() + seconds
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in wanted:
        assert time.monotonic() < end, job
        time.sleep(0.02)
    return job


def test_a_job_from_file_to_model(client, http):
    job = create(client, suffix="mine", seed=4, metadata={"k": "v"})
    assert job.id.startswith("ftjob-")
    assert (job.object, job.model, job.seed, job.metadata) == ("fine_tuning.job", "base", 4, {"k": "v"})
    assert job.fine_tuned_model is None or job.status == "succeeded"
    done = wait(client, job.id, "succeeded")
    assert done.fine_tuned_model.startswith("ft:base:mine:")
    assert len(done.fine_tuned_model.rsplit(":", 1)[1]) == 8
    assert done.trained_tokens == 60
    assert done.finished_at >= done.created_at
    assert done.error is None
    reply = client.chat.completions.create(model=done.fine_tuned_model, messages=[{"role": "user", "content": "Hi"}])
    assert reply.model == done.fine_tuned_model
    results = [client.files.retrieve(file_id) for file_id in done.result_files]
    assert [file.filename for file in results] == ["metrics.csv", "adapter.zip"]
    assert {file.purpose for file in results} == {"fine-tune-results"}
    assert client.files.content(results[0].id).text == "content of metrics.csv"

    assert client.models.retrieve(done.fine_tuned_model).id == done.fine_tuned_model
    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(done.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        client.models.delete(done.fine_tuned_model)
    assert client.files.content(results[1].id).text == "content of adapter.zip"


def test_events_and_checkpoints_in_pages(client):
    job = create(client, hyperparameters={"max_steps": 6})
    wait(client, job.id, "succeeded")
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    messages = [event.message for event in events][::-1]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == "The job has been successfully completed"
    metrics = [event for event in events[::-1] if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[1].data == {"step": 2, "total_steps": 6, "trained_tokens": 20, "train_loss": 0.5}
    assert metrics[1].message == "Step 2/6: training loss=0.5"
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 4, 2]
    assert checkpoints[0].metrics.train_loss == pytest.approx(1 / 6)
    assert checkpoints[0].fine_tuned_model_checkpoint.endswith(":ckpt-step-6")
    assert all(checkpoint.fine_tuning_job_id == job.id for checkpoint in checkpoints)


def test_hyperparameters_are_resolved(client):
    hyperparameters = {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": 0.5,
        "lora_rank": 4,
        "target_modules": ["q_proj"],
        "max_steps": 3,
    }
    job = create(client, hyperparameters=hyperparameters)
    shown = job.method.supervised.hyperparameters
    assert (shown.n_epochs, shown.batch_size, shown.learning_rate_multiplier) == (2, 8, 0.5)
    extra = shown.model_extra
    assert extra["learning_rate"] == pytest.approx(1e-4)
    assert (extra["lora_rank"], extra["lora_alpha"], extra["target_modules"]) == (4, 8, ["q_proj"])
    assert job.hyperparameters.n_epochs == 2
    assert job.seed is not None
    wait(client, job.id, "succeeded")
    old = client.fine_tuning.jobs.create(model="base", training_file=upload(client).id, hyperparameters={"n_epochs": 5})
    assert old.method.supervised.hyperparameters.n_epochs == 5


def test_bad_data_is_refused_with_its_line(client):
    bad = upload(client, data=DATA + b"not json\n")
    with pytest.raises(openai.BadRequestError, match="line 2") as caught:
        client.fine_tuning.jobs.create(model="base", training_file=bad.id)
    assert (caught.value.param, caught.value.code) == ("training_file", "invalid_training_file")
    with pytest.raises(openai.BadRequestError, match="line 2") as caught:
        client.fine_tuning.jobs.create(model="base", training_file=upload(client).id, validation_file=bad.id)
    assert caught.value.param == "validation_file"


def test_cancel(client):
    job = create(client, hyperparameters={"max_steps": 1000, **SLOW})
    wait(client, job.id, "running")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="already been cancelled"):
        client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.cancel("ftjob-none")


def test_a_success_that_comes_after_the_cancellation_is_taken_back(client, server, engine, monkeypatch):
    from tests.service.fake_training import FakeTrainingJob

    monkeypatch.setattr(FakeTrainingJob, "cancel", lambda self: None)  # too late to stop it
    job = create(client, hyperparameters={"max_steps": 3, **SLOW})
    client.fine_tuning.jobs.cancel(job.id)
    time.sleep(0.6)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"
    assert [model.id for model in client.models.list()] == [m for m in engine.models() if job.id not in m]
    assert not [name for name, path in engine.adapters.items() if job.id in str(path)]


def test_pause_and_resume(client):
    job = create(client, hyperparameters={"max_steps": 4, **SLOW})
    wait(client, job.id, "running")
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.pause(job.id)
    time.sleep(0.5)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "running"
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.resume(job.id)
    wait(client, job.id, "succeeded")


def test_an_estimate_while_it_runs_and_none_afterwards(client):
    job = create(client, hyperparameters={"max_steps": 5, **SLOW})
    end = time.monotonic() + 5
    while (estimate := client.fine_tuning.jobs.retrieve(job.id).estimated_finish) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert abs(estimate - time.time()) < 10
    assert wait(client, job.id, "succeeded").estimated_finish is None


def test_a_file_in_use_cannot_be_deleted(client):
    job = create(client, hyperparameters={"max_steps": 1000, **SLOW})
    with pytest.raises(openai.ConflictError) as caught:
        client.files.delete(job.training_file)
    assert caught.value.code == "file_in_use"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(job.training_file).deleted


def test_a_trainer_that_refuses_makes_a_failed_job(client, server, monkeypatch):
    from coserve.errors import InvalidRequest
    from tests.service.fake_training import FakeTrainingJob

    def refuse(self):
        raise InvalidRequest("There is no layer named 'nose'.", param="target_modules")

    monkeypatch.setattr(FakeTrainingJob, "start", refuse)
    job = wait(client, create(client).id, "failed")
    assert job.error.message == "There is no layer named 'nose'."
    assert job.error.param == "target_modules"


def test_results_that_cannot_be_stored_fail_the_job_and_no_other(client, engine, monkeypatch):
    from tests.service.fake_training import FakeTrainingJob

    finish = FakeTrainingJob._finish

    def finish_without_files(self):
        tell, lost = self.listener, self.spec.directory / "lost.csv"
        self.listener = lambda event: tell(replace(event, result_files=(lost,)))
        finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(FakeTrainingJob, "_finish", finish_without_files)
        job = wait(client, create(client).id, "failed", "succeeded")
    assert job.error.message == "The job's results could not be stored."
    wait_until(lambda: not [name for name, path in engine.adapters.items() if job.id in str(path)])
    wait(client, create(client).id, "succeeded")


def test_the_list_of_jobs_is_newest_first(client):
    made = [create(client, hyperparameters={"max_steps": 1}).id for _ in range(3)]
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert listed[:3] == made[::-1]


def test_fine_tuning_starts_from_the_base_model(client):
    tuned = wait(client, create(client).id, "succeeded").fine_tuned_model
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model=tuned, training_file=upload(client).id)
    assert caught.value.param == "model"
