"""Whatever a client sends, it gets the right status and OpenAI's envelope, and the server goes on."""

import json

import httpx
import pytest

from coserve.errors import OutOfMemory
from coserve.service.chat import ChatBody
from coserve.service.completions import CompletionBody
from coserve.service.errors import reply
from coserve.service.fine_tuning import JobBody

CHAT, COMPLETIONS, JOBS = "/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"
MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields):
    return CHAT, {"model": "base", "messages": MESSAGES, **fields}


def completion(**fields):
    return COMPLETIONS, {"model": "base", "prompt": "Hi", **fields}


def job(**fields):
    return JOBS, {"model": "base", "training_file": "file-none", **fields}


def hyper(**fields):
    return job(method={"type": "supervised", "supervised": {"hyperparameters": fields}})


HYPER = "method.supervised.hyperparameters"

BAD_BODIES = [
    (chat(temperature="hot"), 400, "temperature"),
    (chat(temperature=3), 400, "temperature"),
    (chat(temperature=True), 400, "temperature"),
    (chat(top_p=0), 400, "top_p"),
    (chat(top_k=-5), 400, "top_k"),
    (chat(min_p=2), 400, "min_p"),
    (chat(seed=1 << 70), 400, "seed"),
    (chat(n=0), 400, "n"),
    (chat(n=129), 400, "n"),
    (chat(max_tokens=0), 400, "max_tokens"),
    (chat(max_tokens=1.5), 400, "max_tokens"),
    (chat(max_completion_tokens="3"), 400, "max_completion_tokens"),
    (chat(stop=5), 400, "stop"),
    (chat(stop=["a", 5]), 400, "stop[1]"),
    (chat(stop=""), 400, "stop"),
    (chat(stop=["x"] * 17), 400, "stop"),
    (chat(stream="yes"), 400, "stream"),
    (chat(stream_options={"include_usage": True}), 400, "stream_options"),
    (chat(stream=True, stream_options={"include_usage": 3}), 400, "stream_options.include_usage"),
    (chat(presence_penalty=-3), 400, "presence_penalty"),
    (chat(repetition_penalty=0), 400, "repetition_penalty"),
    (chat(logit_bias={"65": 101}), 400, "logit_bias"),
    (chat(logit_bias={"A": 1}), 400, "logit_bias.A"),
    (chat(logit_bias=[1]), 400, "logit_bias"),
    (chat(top_logprobs=2), 400, "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    (chat(logprobs=3), 400, "logprobs"),
    (chat(stop_token_ids=[-1]), 400, "stop_token_ids[0]"),
    (chat(metadata=5), 400, "metadata"),
    (chat(user=5), 400, "user"),
    (chat(model=None), 400, "model"),
    (chat(model="nobody"), 404, "model"),
    (chat(messages=[]), 400, "messages"),
    (chat(messages="Hi"), 400, "messages"),
    (chat(messages=[{"role": "user"}]), 400, "messages[0].content"),
    (chat(messages=[{"content": "Hi"}]), 400, "messages[0].role"),
    (chat(messages=[{"role": "king", "content": "Hi"}]), 400, "messages[0].role"),
    (chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content"),
    (chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), 400, "messages[0].content[0].text"),
    (chat(messages=[{"role": "assistant", "content": "Hi"}]), 400, "messages"),
    (chat(messages=[*MESSAGES, {"role": "tool", "content": "3"}]), 400, "messages[1].role"),
    (
        chat(messages=[*MESSAGES, {"role": "assistant", "tool_calls": [{"id": "1"}]}]),
        400,
        "messages[1].tool_calls",
    ),
    (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        400,
        "messages[0].content[0].type",
    ),
    (chat(messages=[{"role": "user", "content": "x" * 1200}]), 400, "messages"),
    (chat(tools=[{"type": "function"}]), 400, "tools"),
    (chat(tool_choice="required"), 400, "tool_choice"),
    (chat(functions=[{}]), 400, "functions"),
    (chat(response_format={"type": "json_object"}), 400, "response_format"),
    (chat(response_format="json"), 400, "response_format"),
    (chat(modalities=["audio"]), 400, "modalities"),
    (chat(audio={"voice": "x"}), 400, "audio"),
    (completion(prompt=None), 400, "prompt"),
    (completion(prompt=""), 400, "prompt"),
    (completion(prompt=[]), 400, "prompt"),
    (completion(prompt=["a", 1]), 400, "prompt"),
    (completion(prompt=[[]]), 400, "prompt"),
    (completion(prompt=[True]), 400, "prompt"),
    (completion(prompt=[256]), 400, "prompt"),
    (completion(prompt=[-1]), 400, "prompt"),
    (completion(prompt="x" * 1200), 400, "prompt"),
    (completion(prompt=["a"] * 257), 400, "prompt"),
    (completion(prompt=["a"] * 3, n=100), 400, "n"),
    (completion(suffix="x"), 400, "suffix"),
    (completion(best_of=3), 400, "best_of"),
    (completion(logprobs=21), 400, "logprobs"),
    (completion(logprobs=1, echo=True), 400, "logprobs"),
    (completion(max_tokens=0), 400, "max_tokens"),
    (job(), 400, "training_file"),
    (job(training_file=5), 400, "training_file"),
    (job(model="nobody"), 404, "model"),
    (job(suffix="no spaces"), 400, "suffix"),
    (job(suffix="x" * 65), 400, "suffix"),
    (job(seed=-1), 400, "seed"),
    (job(method={"type": "dpo"}), 400, "method.type"),
    (job(integrations=[{"type": "wandb"}]), 400, "integrations"),
    (job(hyperparameters={"n_epochs": 0}), 400, "hyperparameters.n_epochs"),
    (hyper(n_epochs="many"), 400, f"{HYPER}.n_epochs"),
    (hyper(learning_rate=-1), 400, f"{HYPER}.learning_rate"),
    (hyper(learning_rate=0.1, learning_rate_multiplier=2), 400, "hyperparameters.learning_rate"),
    (hyper(lora_rank=0), 400, f"{HYPER}.lora_rank"),
    (hyper(lora_dropout=1.0), 400, f"{HYPER}.lora_dropout"),
    (hyper(target_modules=[]), 400, f"{HYPER}.target_modules"),
    (hyper(target_modules=["nose"]), 400, "target_modules"),
    (hyper(max_steps=10**400), 400, f"{HYPER}.max_steps"),
    (hyper(max_steps=10**30), 400, f"{HYPER}.max_steps"),
    (hyper(max_length=1 << 31), 400, f"{HYPER}.max_length"),
    (hyper(checkpoint_every=10**30), 400, f"{HYPER}.checkpoint_every"),
    (hyper(learning_rate=1e300), 400, f"{HYPER}.learning_rate"),
    (job(seed=10**400), 400, "seed"),
    (job(metadata={"a": "x" * 513}), 400, "metadata.a"),
    (job(metadata={str(i): "x" for i in range(17)}), 400, "metadata"),
    (job(training_file="a\u0000b"), 400, "training_file"),
    (hyper(epochs=3), 400, f"{HYPER}.epochs"),
]


def check_envelope(reply: httpx.Response, status: int) -> dict:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("request_", "status", "param"),
    BAD_BODIES,
    ids=[f"{i}-{param}" for i, (_, _, param) in enumerate(BAD_BODIES)],
)
def test_a_bad_field_is_named(http, request_, status, param):
    path, body = request_
    error = check_envelope(http.post(path, json=body), status)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


NOT_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b'{"a": \x00}',
    b"[" * 50_000,
    b'{"model": NaN',
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, JOBS])
def test_a_body_that_is_no_json_object(http, path):
    for body in NOT_OBJECTS:
        check_envelope(http.post(path, content=body), 400)


def test_numbers_that_json_does_not_have(http):
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = json.dumps({"model": "base", "messages": MESSAGES})[:-1] + f', "temperature": {number}}}'
        check_envelope(http.post(CHAT, content=body), 400)


def test_a_mistake_is_told_with_what_would_be_right(http):
    error = check_envelope(http.post(CHAT, json=chat(temperature="hot")[1]), 400)
    assert error["message"] == "'temperature': input should be a valid number (got 'hot')."
    error = check_envelope(http.post(CHAT, json={"model": "base"}), 400)
    assert error["message"] == "'messages' is required."


def test_an_address_with_a_null_character(http):
    for path in ("/v1/files/a%00b", "/v1/models/%00", "/v1/batches/%00", "/v1/files?after=%00"):
        assert http.get(path).status_code == 400  # PostgreSQL would refuse to look for it


def test_unknown_routes_and_wrong_methods(http):
    assert check_envelope(http.get("/v1/nothing"), 404)["code"] == "unknown_url"
    check_envelope(http.get("/"), 404)
    check_envelope(http.post("/v1/chat/completions/", json={}), 404)
    reply = http.get(CHAT)
    assert check_envelope(reply, 405)["code"] == "method_not_allowed"
    assert "POST" in reply.headers["allow"]
    check_envelope(http.put("/v1/models/base"), 405)


def test_a_body_that_is_too_large(http):
    body = b'{"model": "' + b"x" * 200_000 + b'"}'
    assert check_envelope(http.post(CHAT, content=body), 413)["code"] == "payload_too_large"
    # the same without a declared length
    check_envelope(http.post(CHAT, content=iter([body[:50_000]] * 5)), 413)


def test_a_missing_or_wrong_key(server):
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        wrong = [{}, *({"authorization": value} for value in ("Bearer wrong", "Basic x", "Bearer"))]
        for headers in wrong:
            reply = http.get("/v1/models", headers=headers)
            assert check_envelope(reply, 401)["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
        check_envelope(http.get("/v1/models", headers={"authorization": b"Bearer \xff\xfe"}), 401)
        check_envelope(http.get("/coserve/stats"), 401)
        check_envelope(http.get("/v1/nothing"), 401)
        assert http.get("/health").json()["status"] == "ok"
        assert http.get("/metrics").status_code == 200


def test_what_nobody_expected_is_a_500_without_internals(http, engine, monkeypatch, caplog):
    prompt = "a secret"

    def broken(*_):
        raise ZeroDivisionError(prompt)

    monkeypatch.setattr(engine, "submit", broken)
    error = check_envelope(http.post(CHAT, json=chat()[1]), 500)
    assert error["type"] == "server_error"
    assert prompt not in error["message"]
    assert "ZeroDivisionError" in caplog.text
    assert prompt not in caplog.text
    monkeypatch.undo()
    assert http.post(CHAT, json=chat()[1]).status_code == 200


def test_bad_queries_for_lists(http):
    for path in ("/v1/files", JOBS):
        for query, param in (
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("limit=99999", "limit"),
            ("limit=" + "9" * 5000, "limit"),
            ("order=up", "order"),
            ("after=file-none", "after"),
        ):
            assert check_envelope(http.get(f"{path}?{query}"), 400)["param"] == param


ODD_VALUES = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    "",
    "x",
    "\u0000",
    [],
    [None],
    [[]],
    [{}],
    {},
    {"a": {}},
    {"1": "x"},
]


@pytest.mark.parametrize("make", [chat, completion, job], ids=["chat", "completions", "jobs"])
def test_no_value_of_any_field_is_more_than_a_bad_request(http, make):
    model = {chat: ChatBody, completion: CompletionBody, job: JobBody}[make]
    for field in model.model_fields:
        for value in ODD_VALUES:
            path, body = make(**{field: value})
            reply = http.post(path, json=body)
            assert reply.status_code in (200, 400, 404), (field, value, reply.text)
            if reply.status_code != 200:
                check_envelope(reply, reply.status_code)


def test_nothing_of_it_stopped_the_server(http, engine):
    assert http.post(CHAT, json=chat()[1]).status_code == 200
    assert len(engine.requests) == 1


def test_nobody_tries_again_what_memory_does_not_reach_for():
    headers = reply(OutOfMemory("The GPU's memory does not suffice for a step of 9000 tokens.")).headers
    assert headers["x-should-retry"] == "false" and "retry-after" not in headers
