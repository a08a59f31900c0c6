"""Whole runs: the loss curve of a plain PEFT loop, exact resumption, and an adapter that peft and the engine load."""

from __future__ import annotations

import csv
import math
import threading
import zipfile

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from coserve.engine import Engine, EngineConfig, SamplingParams
from coserve.engine.clock import Readback
from coserve.errors import DataError, InvalidRequest, OutOfMemory
from coserve.models.decoder import Decoder
from coserve.training import JobSpec, LoraConfig, Trainer, TrainingConfig, TrainingJob
from coserve.training.config import LoraConfig as OurLoraConfig
from coserve.training.parameters import learning_rate_at
from coserve.training.run import machine_for
from tests.tiny import tiny_checkpoint
from tests.training.test_gradients import oracle_loss, sequences

CONFIG = TrainingConfig(
    lora=LoraConfig(r=4, lora_alpha=8),
    n_epochs=25,
    batch_size=2,
    learning_rate=2e-3,
    warmup_ratio=0.1,
    weight_decay=0.01,
    micro_batch_tokens=64,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")


def new_trainer(checkpoint, directory, config=CONFIG, **kwargs) -> Trainer:
    decoder = Decoder.from_directory(checkpoint, dtype=torch.float32)
    return Trainer(machine_for(decoder, 128), sequences(decoder.config.vocab_size), config, directory, **kwargs)


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.progress.metrics]


def test_the_loss_curve_over_50_steps_equals_a_plain_peft_loops(checkpoint, tmp_path):
    ours = new_trainer(checkpoint, tmp_path)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        PeftConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                layer, module = name.split(".")[4], name.split(".")[6]
                parameter.copy_(ours.parameters.masters[f"{layer}.{module}.a"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=CONFIG.learning_rate, weight_decay=CONFIG.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, 5, 50)
    wanted = []
    for step in range(50):
        loss = oracle_loss(model, ours._batch(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        wanted.append(loss.item())
    ours.run()
    assert wanted[-1] < 0.8 * wanted[0]
    assert torch.allclose(torch.tensor(losses(ours)), torch.tensor(wanted), rtol=1e-3)


def test_learning_rates_equal_transformers_schedule():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, 5, 100)
    for step in range(100):
        ours = learning_rate_at(step, 100, "cosine", 0.05, 3e-4)
        assert math.isclose(ours, optimizer.param_groups[0]["lr"], rel_tol=1e-9, abs_tol=1e-12)
        optimizer.step()
        schedule.step()


def test_a_run_that_was_cut_off_goes_on_exactly(checkpoint, tmp_path):
    config = TrainingConfig(
        lora=OurLoraConfig(r=4, lora_dropout=0.1),
        n_epochs=8,
        batch_size=2,
        checkpoint_every=5,
        learning_rate=1e-3,
    )
    whole = new_trainer(checkpoint, tmp_path / "whole", config)
    whole.run()
    first = new_trainer(checkpoint, tmp_path / "cut", config)
    while first.progress.step < 12:
        first.next_slice(0.001).run()
    first._wait_for_writer()
    second = new_trainer(checkpoint, tmp_path / "cut", config)
    assert second.progress.step == 10
    second.run()
    assert torch.allclose(torch.tensor(losses(second)), torch.tensor(losses(whole)), rtol=1e-5)
    for name, master in whole.parameters.masters.items():
        assert torch.allclose(master, second.parameters.masters[name], rtol=1e-4, atol=1e-6)


class LateNumbers(Readback):
    """As from a GPU that is some slices behind."""

    asked = 0

    def ready(self) -> bool:
        self.asked += 1
        return self.asked > 20

    def values(self) -> list[float]:
        self.asked = 21
        return super().values()


def test_numbers_that_come_late_are_told_in_order_and_before_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    config = TrainingConfig(lora=LoraConfig(r=4), n_epochs=8, batch_size=2, checkpoint_every=5)
    wanted = new_trainer(checkpoint, tmp_path / "at once", config)
    wanted.run()
    monkeypatch.setattr("coserve.training.trainer.Readback", LateNumbers)
    told = []
    ours = new_trainer(
        checkpoint, tmp_path / "late", config, on_event=lambda event: told.append((event.kind, event.step))
    )
    behind = 0
    while (piece := ours.next_slice(math.inf)) is not None:
        piece.run()
        behind = max(behind, len(ours._launched))
    steps = [step for kind, step in told if kind == "metrics"]
    assert behind >= 1 and steps == list(range(1, 17)) and losses(ours) == losses(wanted)
    for step in (5, 10, 15):
        assert told.index(("metrics", step)) < told.index(("checkpoint", step))
    assert told[-1] == ("finished", 16)


def test_full_training_lowers_the_loss_and_saves_what_transformers_loads(checkpoint, tmp_path):
    from coserve.training.run import save_model

    config = TrainingConfig(method="full", n_epochs=20, batch_size=4, learning_rate=3e-3)
    trainer = new_trainer(checkpoint, tmp_path / "run", config)
    trainer.run()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]
    decoder = trainer.machine.decoder
    save_model(decoder, checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    wanted = decoder.state_dict()
    saved = model.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in wanted.items())


# ---- jobs on an engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(checkpoint):
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny") as engine:
        yield engine


class Listener:
    def __init__(self):
        self.events, self.over = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if event.kind in ("finished", "failed") or event.status == "cancelled":
            self.over.set()

    @property
    def steps(self):
        return sum(event.kind == "metrics" for event in self.events)

    def wait(self):
        assert self.over.wait(120)
        return self.events


def chat_file(path, lines=6):
    rows = [
        f'{{"messages": [{{"role": "user", "content": "Question {i}?"}}, '
        f'{{"role": "assistant", "content": "Answer number {i} is yes."}}]}}'
        for i in range(lines)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def spec_for(tmp_path, name="ft:tiny:test:1", **config) -> JobSpec:
    settings = {"n_epochs": 6, "batch_size": 3, "learning_rate": 5e-3, "checkpoint_every": 4, **config}
    return JobSpec(
        "ftjob-1",
        "tiny",
        chat_file(tmp_path / "data.jsonl"),
        TrainingConfig(lora=LoraConfig(r=4), **settings),
        name,
        tmp_path / "job",
        validation_file=chat_file(tmp_path / "valid.jsonl", 2),
    )


def test_a_job_trains_while_greedy_tokens_stay_the_same(engine, tmp_path):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    prompts = [tuple(range(5, 5 + n)) for n in (3, 30, 150)]
    alone = [[o.token_id for o in engine.generate(p, params)] for p in prompts]
    before = engine.stats()
    listener = Listener()
    job = TrainingJob(engine, spec_for(tmp_path, n_epochs=60), listener)
    job.start()
    rounds = 0
    while not listener.over.is_set() and rounds < 200:
        for p, wanted in zip(prompts, alone, strict=True):
            assert [o.token_id for o in engine.generate(p, params)] == wanted
        rounds += 1
    job.cancel()
    listener.wait()
    after = engine.stats()
    assert rounds > 1 and after.training_tokens > before.training_tokens
    assert after.training_seconds > before.training_seconds


def test_a_jobs_story_results_and_model(engine, checkpoint, tmp_path):
    listener = Listener()
    TrainingJob(engine, spec_for(tmp_path), listener).start()
    events = listener.wait()
    assert [e.status for e in events if e.kind == "status"] == ["validating_files", "queued", "running"]
    steps = [e for e in events if e.kind == "metrics"]
    assert [e.step for e in steps] == list(range(1, 13)) and {e.total_steps for e in steps} == {12}
    assert steps[-1].metrics["train_loss"] < steps[0].metrics["train_loss"]
    assert {"valid_loss", "valid_mean_token_accuracy"} <= steps[-1].metrics.keys()
    assert [e.step for e in events if e.kind == "checkpoint"] == [4, 8]
    done = events[-1]
    assert (done.kind, done.status) == ("finished", "succeeded") and done.trained_tokens > 0
    metrics, archive = done.result_files
    rows = list(csv.DictReader(metrics.open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert set(zipfile.ZipFile(archive).namelist()) == {"adapter_config.json", "adapter_model.safetensors"}

    assert "ft:tiny:test:1" in engine.models()
    ids = engine.tokenizer.apply_chat_template([{"role": "user", "content": "Question 3?"}])
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    tuned = list(engine.generate(ids, greedy, model="ft:tiny:test:1"))
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    oracle = PeftModel.from_pretrained(base, done.adapter_path).eval()
    tokens = [o.token_id for o in tuned]
    with torch.no_grad():
        logits = oracle(torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == tokens
    for output, row in zip(tuned, logits.log_softmax(-1), strict=True):
        assert abs(output.logprob.logprob - row[output.token_id]) < 1e-4
    assert tokens != [o.token_id for o in engine.generate(ids, greedy)]


def test_adapters_and_base_answer_together_as_they_do_alone(engine, tmp_path):
    listener = Listener()
    TrainingJob(engine, spec_for(tmp_path, name="ft:tiny:mixed:1"), listener).start()
    listener.wait()
    from tests.engine.test_engine import Collector

    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    names = ["tiny", "ft:tiny:mixed:1"] * 3
    prompts = [tuple(range(9, 9 + n)) for n in (4, 11, 40, 41, 7, 90)]
    alone = [[o.token_id for o in engine.generate(p, params, model=m)] for p, m in zip(prompts, names, strict=True)]
    crowd = [Collector(engine, p, params, m) for p, m in zip(prompts, names, strict=True)]
    assert [[o.token_id for o in c.wait()] for c in crowd] == alone


def test_cancel_pause_and_resume(engine, tmp_path):
    listener = Listener()
    job = TrainingJob(engine, spec_for(tmp_path, name="ft:tiny:pause:1", n_epochs=500), listener)
    job.start()
    while not any(e.kind == "metrics" for e in listener.events):
        listener.over.wait(0.02)
    job.pause()
    listener.over.wait(0.3)
    steps = len(listener.events)
    listener.over.wait(0.3)
    assert len(listener.events) == steps
    job.resume()
    while len(listener.events) == steps:
        listener.over.wait(0.02)
    job.cancel()
    assert listener.wait()[-1].status == "cancelled"
    assert "ft:tiny:pause:1" not in engine.models()


def test_bad_data_fails_the_job_with_the_line(engine, tmp_path):
    spec = spec_for(tmp_path)
    spec.training_file.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    listener = Listener()
    TrainingJob(engine, spec, listener).start()
    failed = listener.wait()[-1]
    assert failed.kind == "failed" and isinstance(failed.error, DataError)
    assert "line 1: has no message of the assistant" in failed.error.message


@pytest.mark.parametrize("where", ["coserve.training.trainer.Pass", "coserve.training.jobs.Trainer"])
def test_a_job_without_memory_fails_with_what_to_lower_and_holds_none(engine, tmp_path, monkeypatch, where):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(where, full)
    listener = Listener()
    job = TrainingJob(engine, spec_for(tmp_path), listener)
    job.start()
    failed = listener.wait()[-1]
    assert failed.kind == "failed" and isinstance(failed.error, OutOfMemory)
    assert "memory" in failed.error.message and "micro_batch_tokens" in failed.error.message
    assert job._turn is None
    assert list(engine.generate((5, 6, 7), SamplingParams(max_tokens=3, ignore_eos=True)))


def test_an_engine_refuses_to_train_all_weights(engine, tmp_path):
    with pytest.raises(InvalidRequest, match="adapters"):
        TrainingJob(engine, spec_for(tmp_path, method="full"), Listener())


def test_training_stands_still_while_serving_when_protect_is_one(checkpoint, tmp_path):
    config = EngineConfig(protect=1.0)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        listener = Listener()
        stream = engine.generate((5, 6, 7), SamplingParams(max_tokens=400, ignore_eos=True))
        next(stream)
        TrainingJob(engine, spec_for(tmp_path), listener).start()
        for _ in stream:
            trained = engine.stats().training_tokens
        assert trained == 0
        assert listener.wait()[-1].kind == "finished"


@pytest.mark.parametrize("protect", ["goals", 1.5])
def test_training_goes_on_while_serving_under_other_settings(checkpoint, tmp_path, protect):
    config = EngineConfig(protect=protect)
    with Engine.from_pretrained(checkpoint, dtype="float32", name="tiny", config=config) as engine:
        listener = Listener()
        TrainingJob(engine, spec_for(tmp_path, n_epochs=40), listener).start()
        while not any(e.status == "running" for e in listener.events):
            listener.over.wait(0.01)
        for _ in engine.generate((5, 6, 7), SamplingParams(max_tokens=450, ignore_eos=True)):
            pass
        assert engine.stats().training_tokens > 0
        listener.wait()
