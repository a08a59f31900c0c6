"""The commands that talk to a running server, against one with canned answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coserve import __version__

CHAT_LINE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text(CHAT_LINE * 4)
    return path


def test_version(run):
    assert run("--version").output == f"coserve {__version__}\n"


def test_help_needs_neither_torch_nor_httpx():
    code = "import sys, coserve.cli; sys.exit(bool({'torch', 'httpx', 'pydantic', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_command_has_help(run):
    for command in (
        "up",
        "serve",
        "chat",
        "train",
        "jobs",
        "batches",
        "models",
        "top",
        "report",
        "chips",
        "sleep",
        "wake",
    ):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_models_lists_base_and_adapters(run, server):
    assert run("models").output.split() == ["tiny", "ft:tiny:house:0a1b2c3d"]


def test_a_server_sleeps_and_wakes(run, server):
    assert run("sleep").output == "asleep: 103.4 GB of the GPU's memory are free. Wake it: coserve wake\n"
    assert run("wake").output == "awake\n"
    assert [path for path, _ in server.posted] == ["/sleep", "/wake_up"]
    refused = run("sleep", "--api-key", "sk-wrong")
    assert refused.exit_code != 0 and refused.stderr == "coserve: Incorrect API key.\n"


def test_a_question_is_answered_by_the_base_model(run, server):
    assert run("chat", "Hi").output == "Hello, world\n"
    path, body = server.posted[-1]
    assert path == "/v1/chat/completions"
    assert body == {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_a_piped_question_is_one_question(run, server):
    assert run("chat", "--model", "other", input="What\nis it?\n").output == "Hello, world\n"
    assert server.posted[-1][1]["model"] == "other"
    assert server.posted[-1][1]["messages"] == [{"role": "user", "content": "What\nis it?"}]


def test_nothing_piped_is_an_error(run, server):
    assert run("chat", input="").exit_code == 2


def test_a_conversation_remembers_what_was_said(run, server, monkeypatch):
    from coserve.address import find_server
    from coserve.cli.chat import Conversation, _converse
    from coserve.client import Client

    questions = iter(["Hi", "", "/what", "And?", "/new", "/model other", "Again"])

    def read(prompt: str) -> str:
        try:
            return next(questions)
        except StopIteration:
            raise EOFError from None

    with Client(find_server(Path())) as client:
        _converse(Conversation(client, "tiny", system="Be brief.", params={}), read)
    first, second, third = (body for _, body in server.posted)
    assert [m["content"] for m in first["messages"]] == ["Be brief.", "Hi"]
    assert [m["content"] for m in second["messages"]] == ["Be brief.", "Hi", "Hello, world", "And?"]
    assert [m["content"] for m in third["messages"]] == ["Be brief.", "Again"]
    assert third["model"] == "other"


def test_train_uploads_creates_and_says_how_to_follow(run, server, data):
    result = run("train", data, "--suffix", "house", "--epochs", "2", "--rank", "8", "--learning-rate", "1e-3")
    assert result.exit_code == 0, result.output
    assert "coserve jobs follow ftjob-1" in result.output
    (_, upload), (_, job) = server.posted
    assert CHAT_LINE.encode() in upload
    assert b'name="purpose"' in upload
    assert job["model"] == "tiny"
    assert job["training_file"] == "file-1"
    assert job["suffix"] == "house"
    assert job["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 2,
        "learning_rate": 1e-3,
        "lora_rank": 8,
    }


def test_train_follow_ends_with_the_new_model(run, server, data):
    result = run("train", data, "--follow")
    assert result.exit_code == 0, result.output
    assert "succeeded step 2/2 loss 1.500" in result.output
    assert "coserve chat --model ft:tiny:house:0a1b2c3d" in result.output


def test_train_refuses_a_bad_line_before_it_is_sent(run, server, data):
    pytest.importorskip("coserve.training.data")
    data.write_text(CHAT_LINE + '{"messages": "oops"}\n')
    result = run("train", data)
    assert result.exit_code == 2
    assert str(data) in result.stderr
    assert "line 2" in result.stderr
    assert server.posted == []


def test_train_refuses_a_file_that_is_not_there(run, server, tmp_path):
    result = run("train", tmp_path / "none.jsonl")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "none.jsonl is not there" in result.stderr


def test_jobs_lists_newest_first(run, server):
    assert run("jobs").output == run("jobs", "list").output
    assert "ftjob-1" in run("jobs").output


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n')
    return path


def test_batches_lists_newest_first(run, server):
    assert run("batches").output == run("batches", "list").output
    assert "batch-1  " in run("batches").output
    assert "in_progress       3/4" in run("batches").output


def test_batches_create_takes_the_endpoint_from_the_file(run, server, requests):
    result = run("batches", "create", str(requests), "--window", "1h")
    assert server.posted[-1] == (
        "/v1/batches",
        {"input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "1h"},
    )
    assert b'name="purpose"\r\n\r\nbatch\r\n' in server.posted[-2][1]
    assert "coserve batches wait batch-1" in result.output


@pytest.mark.parametrize("content", ["", "[]", "no JSON", '{"custom_id": "a"}'])
def test_batches_create_needs_a_file_of_requests(run, server, tmp_path, content):
    (tmp_path / "bad.jsonl").write_text(content)
    result = run("batches", "create", str(tmp_path / "bad.jsonl"))
    assert result.exit_code == 2
    assert not server.posted


def test_batches_show_says_all_of_it(run, server):
    assert '"status": "in_progress"' in run("batches", "show", "batch-1").output


def test_batches_cancel_says_the_new_status(run, server):
    assert "cancelling" in run("batches", "cancel", "batch-1").output


def test_batches_wait_writes_the_replies(run, server, tmp_path):
    output = tmp_path / "replies.jsonl"
    result = run("batches", "wait", "batch-2", "--output", str(output))
    assert result.exit_code == 0
    assert "batch-2  2025-10-09" in result.output
    assert output.read_text() == "{}"


def test_batches_wait_says_why_a_batch_failed(run, server):
    result = run("batches", "wait", "batch-3")
    assert result.exit_code == 1
    assert "line 2: The line is not valid JSON." in result.output


def test_jobs_cancel_says_the_new_status(run, server):
    assert "cancelled" in run("jobs", "cancel", "ftjob-1").output
    assert server.posted[-1][0] == "/v1/fine_tuning/jobs/ftjob-1/cancel"


def test_top_once_is_one_line(run, server):
    result = run("top", "--once")
    assert result.output.count("\n") == 1
    assert "3 running 1 waiting 42 done" in result.output
    assert "training succeeded step 2/2 loss 1.500" in result.output


def test_the_servers_own_error_is_one_line(run, server):
    result = run("jobs", "follow", "ftjob-2")
    assert (result.exit_code, result.stderr) == (1, "coserve: There is no such thing.\n")


def test_a_wrong_key_is_one_line(run, server):
    result = run("models", "--api-key", "sk-wrong")
    assert (result.exit_code, result.stderr) == (1, "coserve: Incorrect API key.\n")


def test_no_server_is_one_line_that_says_what_to_do(run):
    result = run("models", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "coserve up" in result.stderr
