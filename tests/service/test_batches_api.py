"""/v1/batches through OpenAI's client, against a real server."""

import io
import json
import signal
import sqlite3
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import openai
import pytest

from coserve.errors import CoserveError, Unavailable
from coserve.service.auth.projects import NewProject
from coserve.service.batches import run
from coserve.service.batches.mistakes import check
from tests.service.conftest import openai_client, start
from tests.service.fake_engine import FakeEngine
from tests.service.tenants import make_tenants
from tests.service.test_chat_api import wait_until
from tests.service.test_kill import running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def chat(custom_id: str, content: str = "Hi", **body: object) -> dict:
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "base", "messages": messages, **body},
    }


def completion(custom_id: str, **body: object) -> dict:
    body = {"model": "base", "prompt": "a", "max_tokens": 20, **body}
    return {"custom_id": custom_id, "method": "POST", "url": COMPLETIONS, "body": body}


def upload(client: openai.OpenAI, lines: list) -> str:
    data = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return client.files.create(file=("in.jsonl", io.BytesIO(data.encode())), purpose="batch").id


def create(client: openai.OpenAI, lines: list, endpoint: str = CHAT, window: str = "24h", **options):
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=endpoint, completion_window=window, **options
    )


def wait(client: openai.OpenAI, batch, *statuses: str, seconds: float = 20):
    wait_until(lambda: client.batches.retrieve(batch.id).status in (statuses or ENDED), seconds)
    return client.batches.retrieve(batch.id)


def read(client: openai.OpenAI, file_id: str | None) -> list[dict]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


def ledger(home: Path) -> list[sqlite3.Row]:
    """Of a stopped server."""
    with sqlite3.connect(home / "coserve.db") as database:
        database.row_factory = sqlite3.Row
        return list(database.execute("SELECT * FROM usage"))


def add_key(home: Path, **project: object) -> str:
    """A key of a new project, before the server starts."""
    [(_, key)] = make_tenants(home, [NewProject("other", **project)])
    return key


def test_replies_come_in_the_order_of_the_input(client, engine):
    engine.delay = 0.001
    names = [f"request {i}" for i in range(100)]
    batch = create(client, [chat(name, "x" * (i % 7)) for i, name in enumerate(names)], metadata={"why": "test"})
    assert (batch.object, batch.status, batch.endpoint, batch.completion_window) == ("batch", "validating", CHAT, "24h")
    assert batch.expires_at == batch.created_at + 86400
    done = wait(client, batch)
    assert (done.status, done.metadata, done.error_file_id, done.errors) == ("completed", {"why": "test"}, None, None)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (100, 100, 0)
    file = client.files.retrieve(done.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    lines = read(client, done.output_file_id)
    assert [line["custom_id"] for line in lines] == names
    assert len({line["id"] for line in lines}) == 100
    for i, line in enumerate(lines):
        body = line["response"]["body"]
        assert (line["response"]["status_code"], line["error"]) == (200, None)
        assert (body["object"], body["service_tier"]) == ("chat.completion", "batch")
        assert body["choices"][0]["message"]["content"] == "Hello, world!"
        assert body["usage"]["prompt_tokens"] == len("user:\nassistant:") + i % 7
    assert all(request.priority == -20 for request in engine.requests)


def test_completions_with_choices_and_logprobs(client):
    batch = create(client, [completion("a", n=2, logprobs=1, prompt=["x", "y"])], COMPLETIONS)
    (line,) = read(client, wait(client, batch).output_file_id)
    reply = openai.types.Completion.model_validate(line["response"]["body"])
    assert [choice.text for choice in reply.choices] == ["Hello, world!"] * 4
    assert reply.choices[0].logprobs.tokens[0] == "H"


def test_a_request_that_fails_is_a_line_of_the_error_file(client, http, engine):
    wrong = {
        "stream": chat("stream", stream=True),
        "long": chat("long", "x" * 2000),
        "temperature": chat("temperature", temperature=9),
        "messages": chat("messages", messages=[]),
        "tools": chat("tools", tools=[{"type": "function"}]),
        "nan": json.dumps(chat("nan", top_p=float("nan"))),
    }
    batch = create(client, [chat("first"), *wrong.values(), chat("last")])
    done = wait(client, batch)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, len(wrong))
    assert [line["custom_id"] for line in read(client, done.output_file_id)] == ["first", "last"]
    errors = read(client, done.error_file_id)
    assert [line["custom_id"] for line in errors] == list(wrong)
    assert client.files.retrieve(done.error_file_id).filename == f"{batch.id}_error.jsonl"
    for line in errors:
        assert (line["error"], line["response"]["status_code"]) == (None, 400)
        assert set(line["response"]["body"]["error"]) == {"message", "type", "param", "code"}
        if line["custom_id"] not in ("stream", "nan"):  # in a batch as over HTTP
            reply = http.post(CHAT, json=wrong[line["custom_id"]]["body"])
            assert line["response"]["body"] == reply.json()


def test_an_engine_that_fails_costs_the_request_and_not_the_batch(client, engine):
    engine.fail_after, engine.failure = 3, CoserveError("Broken.")
    done = wait(client, create(client, [chat("a"), chat("b")]))
    assert (done.status, done.output_file_id, done.request_counts.failed) == ("completed", None, 2)
    assert {line["response"]["status_code"] for line in read(client, done.error_file_id)} == {500}


def test_a_passing_shortage_is_waited_out(client, engine):
    engine.fail_after, engine.failure, engine.delay = 3, Unavailable("Busy."), 0.05
    batch = create(client, [chat("a")])
    wait_until(lambda: engine.requests)
    time.sleep(0.3)  # it fails after 0.2 seconds, and is tried again a second later
    engine.fail_after = None
    done = wait(client, batch)
    assert (done.request_counts.completed, done.error_file_id) == (1, None)
    assert len(engine.requests) == 2


def test_a_bad_file_fails_with_each_mistake_and_its_line(client, engine):
    lines = [chat("a"), "{", {**chat("b"), "method": "GET"}, chat("a"), "", completion("c"), chat("d", model="gpt-9")]
    failed = wait(client, create(client, lines))
    assert (failed.status, failed.output_file_id, failed.error_file_id) == ("failed", None, None)
    assert failed.failed_at >= failed.created_at
    assert [(error.line, error.code) for error in failed.errors.data] == [
        (2, "invalid_json_line"),
        (3, "invalid_method"),
        (4, "duplicate_custom_id"),
        (6, "invalid_url"),
        (7, "model_not_found"),
    ]
    assert failed.errors.object == "list"
    assert not engine.requests


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "25h"}, "completion_window"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0s"}, "completion_window"),
        ({"input_file_id": "file-unknown"}, "input_file_id"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ],
)
def test_what_cannot_be_is_refused_at_once(client, change, param):
    body = {"input_file_id": upload(client, [chat("a")]), "endpoint": CHAT, "completion_window": "24h", **change}
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(**body)
    assert refused.value.param == param


def test_a_file_for_training_is_none_for_a_batch(client):
    file = client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def test_an_unknown_batch(client):
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call("batch-unknown")


def test_pages_and_windows(client):
    made = [create(client, [chat("a")], window=window).id for window in ("24h", "1h", "90min", "5400s", "7s")]
    listed = list(client.batches.list(limit=2))[:5]
    assert [batch.id for batch in listed] == made[::-1]
    assert [batch.completion_window for batch in listed] == ["7s", "90min", "90min", "1h", "24h"]


def test_a_cancelled_batch_keeps_what_was_done(client, engine):
    lines = [chat(f"{i}") for i in range(200)]
    engine.delay = 0.02
    batch = create(client, lines)
    file = batch.input_file_id
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 32)
    with pytest.raises(openai.ConflictError, match="in use by the batch"):
        client.files.delete(file)
    cancelling = client.batches.cancel(batch.id)
    assert (cancelling.status, cancelling.cancelled_at) == ("cancelling", None)
    done = wait(client, batch)
    assert done.status == "cancelled"
    assert done.created_at <= done.cancelling_at <= done.cancelled_at
    output, errors = read(client, done.output_file_id), read(client, done.error_file_id)
    assert 32 <= len(output) == done.request_counts.completed < 200
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert {line["custom_id"] for line in output + errors} == {f"{i}" for i in range(200)}
    assert done.request_counts.failed == 0
    with pytest.raises(openai.ConflictError, match="it is cancelled"):
        client.batches.cancel(batch.id)
    assert client.files.delete(file).deleted
    time.sleep(0.2)
    begun = len(engine.requests)
    time.sleep(0.2)
    assert len(engine.requests) == begun


def test_a_batch_whose_window_is_over_keeps_what_was_done(client, engine):
    engine.delay = 0.02
    batch = create(client, [chat(f"{i}") for i in range(300)], window="2s")
    done = wait(client, batch)
    assert (done.status, done.completed_at) == ("expired", None)
    assert batch.created_at + 2 <= done.expired_at <= batch.created_at + 4
    output, errors = read(client, done.output_file_id), read(client, done.error_file_id)
    assert len(output) == done.request_counts.completed > 0
    assert len(errors) == 300 - len(output)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    assert all(line["response"] is None for line in errors)


def test_nobody_waits_for_a_batch_s_first_token(client, http):
    def counted() -> float:
        lines = [line for line in http.get("/metrics").text.splitlines() if "tier_ttft_seconds_count" in line]
        return sum(float(line.split()[-1]) for line in lines)

    before = counted()
    assert wait(client, create(client, [chat("a")])).status == "completed"
    assert counted() == before
    client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hi"}])
    assert counted() == before + 1


def test_few_requests_run_at_once_and_batches_share_them(tmp_path):
    server = start(tmp_path, batch_requests=4)
    client, engine = openai_client(server), server.engine
    engine.delay = 0.01
    first = create(client, [chat(f"{i}", "first") for i in range(60)])
    wait_until(lambda: engine.requests)
    second = create(client, [chat(f"{i}", "second") for i in range(5)])
    assert wait(client, second).status == "completed"
    assert client.batches.retrieve(first.id).status == "in_progress"
    server.stop()


def test_a_restart_goes_on_where_it_was(tmp_path):
    server = start(tmp_path)
    client, engine = openai_client(server), server.engine
    engine.delay = 0.005
    names = [f"{i}" for i in range(150)]
    batch = create(client, [chat(name) for name in names])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 40)
    server.stop()
    kept = len((tmp_path / "batches" / batch.id / "results").read_bytes().splitlines())

    server = start(tmp_path)
    client = openai_client(server)
    done = wait(client, batch)
    assert (done.status, done.request_counts.completed) == ("completed", 150)
    assert [line["custom_id"] for line in read(client, done.output_file_id)] == names
    assert len(server.engine.requests) == 150 - kept
    wait_until(lambda: not list((tmp_path / "batches").iterdir()))
    server.stop()
    check_bill(tmp_path, batch.id, 150)


def test_a_stop_does_not_wait_for_files_that_nobody_has_begun_to_check(tmp_path, monkeypatch):
    checked = []

    def slowly(path, rules):
        checked.append(path)
        time.sleep(0.3)
        return check(path, rules)

    monkeypatch.setattr(run, "check", slowly)
    server = start(tmp_path)
    client = openai_client(server)
    batches = [create(client, [chat("a")]) for _ in range(6)]
    server.stop()
    assert len(checked) <= 3
    server = start(tmp_path)
    assert {wait(openai_client(server), batch).status for batch in batches} == {"completed"}
    server.stop()


def test_a_batch_waits_for_its_model(tmp_path):
    first = start(tmp_path)
    client = openai_client(first)
    first.engine.delay = 0.02
    batch = create(client, [chat(f"{i}") for i in range(64)])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed)
    first.stop()
    second = start(tmp_path, FakeEngine("other"))
    time.sleep(0.3)
    assert openai_client(second).batches.retrieve(batch.id).status == "in_progress"
    second.stop()
    third = start(tmp_path)
    assert wait(openai_client(third), batch).request_counts.completed == 64
    third.stop()


def check_bill(home: Path, batch_id: str, requests: int) -> None:
    """One row for each request, at half of the enterprise tier's price."""
    rows = [row for row in ledger(home) if row["batch_id"] == batch_id]
    assert Counter(row["id"] for row in rows) == Counter(f"{batch_id}-{i}" for i in range(requests))
    for row in rows:
        assert (row["terms"], row["outcome"], row["endpoint"]) == ("batch", "completed", "chat")
        assert row["completion_tokens"] == 13
        assert row["cost"] == row["prompt_tokens"] * 100 + 13 * 400  # 0.20 and 0.80 USD a million, halved


def test_a_killed_server_runs_and_bills_each_request_once(tmp_path):
    names = [f"{i}" for i in range(600)]
    with running("fake", tmp_path) as (process, client):
        batch = create(client, [chat(name) for name in names])
        wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 100, 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = (tmp_path / "batches" / batch.id / "results").read_bytes().splitlines()
    assert 100 <= len(kept) < 600

    with running("fake", tmp_path) as (process, client):
        done = wait(client, batch, seconds=60)
        assert (done.status, done.request_counts.completed) == ("completed", 600)
        lines = read(client, done.output_file_id)
        assert [line["custom_id"] for line in lines] == names
        replies = {line["response"]["body"]["id"] for line in lines}
        assert {json.loads(line.split(b" ", 2)[2])["response"]["body"]["id"] for line in kept} <= replies
        process.terminate()
        assert process.wait(10) == 0
    check_bill(tmp_path, batch.id, 600)


def test_batches_belong_to_their_project(tmp_path):
    other = add_key(tmp_path)
    server = start(tmp_path)
    mine, theirs = openai_client(server), openai_client(server, other)
    batch = wait(mine, create(mine, [chat("a")]))
    assert [b.id for b in mine.batches.list()] == [batch.id]
    assert list(theirs.batches.list()) == []
    for call in (theirs.batches.retrieve, theirs.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(batch.id)
    with pytest.raises(openai.NotFoundError):
        theirs.files.content(batch.output_file_id)
    with pytest.raises(openai.BadRequestError):
        theirs.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
    server.stop()


TIERS = """
tiers:
  small:
    priority: 0
    price: { input: 100, output: 1000 }
    batch: { requests: 10, tokens_per_day: 86400000 }
  large: { priority: 1 }
"""


def test_a_tier_says_how_many_requests_a_batch_may_have(tmp_path):
    (tmp_path / "tiers.yaml").write_text(TIERS)
    key = add_key(tmp_path, tier="small")
    server = start(tmp_path)
    client = openai_client(server, key)
    assert wait(client, create(client, [chat(f"{i}") for i in range(10)])).status == "completed"
    failed = wait(client, create(client, [chat(f"{i}") for i in range(11)]))
    assert (failed.status, failed.errors.data[0].code) == ("failed", "too_many_requests")
    server.stop()


def test_a_limit_of_tokens_is_waited_out(tmp_path):
    """A day's bucket of 864 tokens refills by one in a hundred seconds: the window is over before."""
    (tmp_path / "tiers.yaml").write_text(TIERS.replace("86400000", "864"))
    key = add_key(tmp_path, tier="small")
    server = start(tmp_path)
    client = openai_client(server, key)
    lines = [chat(f"{i}", "x" * 300, max_completion_tokens=5) for i in range(5)]
    done = wait(client, create(client, lines, window="3s"))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("expired", 2, 0)
    server.stop()


def test_a_spent_budget_ends_the_rest_as_errors(tmp_path):
    (tmp_path / "tiers.yaml").write_text(TIERS)
    each = (len("user:Hi\nassistant:") * 100 + 13 * 1000) * 1000 // 2  # nano-dollars
    key = add_key(tmp_path, tier="small", budget=each * 4)
    server = start(tmp_path)
    client = openai_client(server, key)
    done = wait(client, create(client, [chat(f"{i}", max_completion_tokens=13) for i in range(10)]))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 4, 6)
    errors = [line["response"] for line in read(client, done.error_file_id)]
    assert {(e["status_code"], e["body"]["error"]["code"]) for e in errors} == {(429, "insufficient_quota")}
    server.stop()


@pytest.mark.slow
def test_many_requests_in_little_memory(tmp_path):
    """Only offsets stay: not what was asked, and not what was answered."""
    server = start(tmp_path, batch_requests=32)
    client = openai_client(server)
    file = upload(client, [chat(f"{i}", "x" * 500, max_completion_tokens=1) for i in range(5000)])
    remember, server.engine.requests = server.engine.requests, _Forgetful()
    assert remember == []
    tracemalloc.start()
    batch = client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 500, 30)
    early = tracemalloc.get_traced_memory()[0]
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 4500, 90)
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    done = wait(client, batch, seconds=60)
    assert done.request_counts.completed == 5000
    assert late - early < 2_000_000, f"{early} -> {late} bytes"
    server.stop()


class _Forgetful(list):
    def append(self, _: object) -> None: ...
