"""POST /v1/completions through OpenAI's own client."""

import pytest


def test_a_completion_goes_on_after_the_prompt(client, engine):
    reply = client.completions.create(model="base", prompt="Say")
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("Hello, world!", "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 13)
    assert engine.requests[0].params.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97, 98], [99]], [b"ab", b"c"]),
    ],
)
def test_all_four_forms_of_a_prompt(client, engine, prompt, tokens):
    reply = client.completions.create(model="base", prompt=prompt, echo=True, max_tokens=1, n=2)
    texts = [token.decode() + "H" for token in tokens for _ in range(2)]
    assert [choice.text for choice in reply.choices] == texts
    assert [choice.index for choice in reply.choices] == list(range(len(texts)))
    assert [bytes(request.prompt) for request in engine.requests[::2]] == tokens
    assert reply.usage.prompt_tokens == sum(map(len, tokens))


def test_a_stream_with_echo_and_usage(client):
    stream = client.completions.create(
        model="base",
        prompt=["a", "b"],
        echo=True,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["aHello", "bHello"]
    assert (last.choices, last.usage.total_tokens) == ([], 12)


def test_logprobs_have_the_old_shape(client):
    reply = client.completions.create(model="base", prompt="x", max_tokens=3, logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert logprobs.tokens == ["H", "e", "l"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs[0] == {"H": -0.5, "I": -1.5}
    assert logprobs.text_offset == [0, 1, 2]
    stream = client.completions.create(model="base", prompt="x", max_tokens=3, logprobs=0, stream=True)
    offsets = [offset for chunk in stream for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == [0, 1, 2]
