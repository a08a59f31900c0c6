"""POST /v1/chat/completions through OpenAI's own client."""

import asyncio
import json

import httpx
import openai
import pytest

from tests.service.conftest import KEY

HELLO = [{"role": "user", "content": "Hi"}]


def test_a_reply_is_what_the_engine_said(client, engine):
    reply = client.chat.completions.create(model="base", messages=HELLO)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == "base"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == "Hello, world!"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs is None
    prompt = len("user:Hi\nassistant:")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompt, 13)
    assert reply.usage.total_tokens == prompt + 13
    assert reply._request_id.startswith("req_")


def test_a_stream_has_one_id_and_ends_with_a_reason(client):
    chunks = list(client.chat.completions.create(model="base", messages=HELLO, stream=True))
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


def test_usage_comes_last_when_asked_for(http):
    body = {"model": "base", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    *chunks, last = [json.loads(event) for event in events[:-1]]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 13


def test_no_usage_unless_asked_for(http):
    reply = http.post("/v1/chat/completions", json={"model": "base", "messages": HELLO, "stream": True})
    assert "usage" not in reply.text


def test_each_choice_is_complete(client, engine):
    reply = client.chat.completions.create(model="base", messages=HELLO, n=3, seed=5)
    assert [(c.index, c.message.content) for c in reply.choices] == [(i, "Hello, world!") for i in range(3)]
    assert reply.usage.completion_tokens == 39
    assert reply.usage.prompt_tokens == len("user:Hi\nassistant:")
    assert [request.params.seed for request in engine.requests] == [5, 6, 7]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model="base", messages=HELLO, n=3, stream=True):
        choice = chunk.choices[0]
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == ["Hello, world!"] * 3


def test_what_a_client_says_reaches_the_engine(client, engine):
    client.chat.completions.create(
        model="base",
        messages=HELLO,
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.9,
        seed=1,
        stop=["a", "b"],
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"65": -100},
        user="u",
        metadata={"k": "v"},
        store=False,
        service_tier="auto",
        extra_body={
            "top_k": 7,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "stop_token_ids": [3],
            "ignore_eos": True,
            "unheard_of": [1],
        },
    )
    params = engine.requests[0].params
    assert (params.max_tokens, params.temperature, params.top_p, params.seed) == (3, 0.5, 0.9, 1)
    assert (params.top_k, params.min_p, params.repetition_penalty) == (7, 0.1, 1.1)
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == (("a", "b"), (3,), True)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert params.logit_bias == {65: -100}


def test_the_length_is_limited_on_request(client):
    reply = client.chat.completions.create(model="base", messages=HELLO, max_tokens=5, stop="x")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Hello", "length")


def test_logprobs_have_openai_s_shape(client):
    reply = client.chat.completions.create(model="base", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2)
    first, second = reply.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("H", [72], -0.5)
    assert [(top.token, top.logprob) for top in second.top_logprobs] == [("e", -0.5), ("f", -1.5)]
    stream = client.chat.completions.create(model="base", messages=HELLO, max_tokens=2, logprobs=True, stream=True)
    tokens = [c.choices[0].logprobs.content[0].token for c in stream if c.choices[0].logprobs]
    assert tokens == ["H", "e"]


def test_text_parts_and_the_developer_role_become_plain_turns(client, engine):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    client.chat.completions.create(
        model="base", messages=[{"role": "developer", "content": "S"}, {"role": "user", "content": parts}]
    )
    assert bytes(engine.requests[0].prompt) == b"system:S\nuser:one two\nassistant:"


def test_text_of_any_script_survives_the_stream(client, engine):
    engine.answer = 'a\u2028b"\\\n'
    stream = client.chat.completions.create(model="base", messages=HELLO, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "".join(chr(byte) for byte in engine.answer.encode())


def test_an_error_before_the_first_token_is_an_http_error(client, engine):
    engine.fail_after = 0
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="base", messages=HELLO, stream=stream)
        assert caught.value.status_code == 500


def test_an_error_in_mid_stream_is_an_event(client, http, engine):
    engine.fail_after = 3
    stream = client.chat.completions.create(model="base", messages=HELLO, stream=True)
    pieces = []
    with pytest.raises(openai.APIError, match="The engine failed"):
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert pieces == ["", "H", "e", "l"]
    raw = http.post("/v1/chat/completions", json={"model": "base", "messages": HELLO, "stream": True})
    assert '"error":{"message":"The engine failed on this request."' in raw.text
    assert raw.text.endswith("data: [DONE]\n\n")


def test_many_streams_at_once_through_the_async_client(server, engine):
    engine.delay = 0.005

    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="base", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(20)))

    assert asyncio.run(all_of_them()) == ["Hello, world!"] * 20


def test_openai_s_exceptions_tell_what_was_wrong(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x" * 2000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="base", messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (tools.value.param, "not supported yet" in tools.value.message) == ("tools", True)


def test_a_client_that_leaves_cancels_its_request(server, engine):
    engine.delay, engine.answer = 0.02, "x" * 400
    headers = {"authorization": f"Bearer {KEY}"}
    for stream in (True, False):
        engine.requests.clear()
        body = {"model": "base", "messages": HELLO, "stream": stream, "n": 2}

        async def leave(body=body) -> None:
            async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as http:
                task = asyncio.create_task(http.post("/v1/chat/completions", json=body))
                await asyncio.sleep(0.15)
                task.cancel()

        asyncio.run(leave())
        wait_until(lambda: {r.id for r in engine.requests} <= engine.cancelled)
        assert len(engine.requests) == 2


def wait_until(condition, seconds: float = 5.0) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
