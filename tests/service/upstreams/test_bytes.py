"""What is done to replies as bytes is what would be done to their JSON, whatever a model says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.errors import InvalidRequest
from coserve.service.upstreams.asking import Asking
from coserve.service.upstreams.config import UpstreamConfig
from coserve.service.upstreams.counting import Count
from coserve.service.upstreams.events import (
    LARGEST,
    Events,
    has_content,
    has_finish,
    may_have_error,
    may_have_usage,
)
from coserve.service.upstreams.failures import Failure
from coserve.service.upstreams.naming import Naming

NASTY = st.one_of(
    st.text(),
    st.sampled_from(
        [
            '"model":"x"',
            '\\"model\\":"their/m"',
            '"service_tier":null,"usage":{',
            '{"error":{"message":"x"}}',
            '"finish_reason":"stop"',
            "data: [DONE]\n\n",
            "\\",
            '"',
            '\\","model":"y',
        ]
    ),
)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])


def chunk(text: str, **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "1", "model": "their/m", "choices": [choice], **more}


@given(NASTY, SEPARATORS, st.booleans(), st.sampled_from(["m", 'a"b\\', "ü/m"]))
def test_only_the_names_change(text, separators, ascii, name):
    tiers = [{}, {"service_tier": None}, {"service_tier": "on_demand"}]
    for more in tiers:
        sent = chunk(text, **more)
        data = json.dumps(sent, separators=separators, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
        renamed = json.loads(Naming(name, "flex", chat=True).chunk(data))
        assert renamed == {**sent, "model": name, "service_tier": "flex"}
        plain = json.loads(Naming(name, "flex", chat=False).chunk(data))
        assert plain == {**sent, "model": name, **({"service_tier": "flex"} if more else {})}


@given(NASTY, SEPARATORS)
def test_nothing_that_a_model_says_is_taken_for_a_field(text, separators):
    data = json.dumps(chunk(text, usage=None), separators=separators).encode()
    assert has_content(data) == bool(text)
    assert not (has_finish(data) or may_have_usage(data) or may_have_error(data))


@given(st.lists(NASTY, max_size=8), st.sampled_from(["\n\n", "\r\n\r\n"]), st.lists(st.integers(1, 20), min_size=1))
def test_events_do_not_depend_on_how_the_bytes_are_cut(texts, end, cuts):
    sent = [json.dumps(chunk(text)) for text in texts]
    stream = "".join(f": comment{end}data: {data}{end}" for data in sent).encode()
    events, found, at = Events(), [], 0
    while at < len(stream):
        size = cuts[len(found) % len(cuts)]
        found += events.feed(stream[at : at + size])
        at += size
    assert [data.decode() for data in found] == sent
    assert events.rest() == b""


def test_a_last_event_without_its_end_and_events_in_several_lines_are_read():
    events = Events()
    assert list(events.feed(b'event: x\ndata: {"a":\ndata: 1}\n\ndata:{"b":2}')) == [b'{"a": 1}']
    assert events.rest() == b'{"b":2}'


def test_an_event_without_an_end_is_given_up():
    events = Events()
    list(events.feed(b"x" * LARGEST))
    with pytest.raises(Failure):
        list(events.feed(b"x"))


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details", "x"]),
        st.one_of(
            st.integers(-5, 10**20), st.text(), st.none(), st.booleans(), st.just({"cached_tokens": 3}), st.just([])
        ),
    )
)
def test_counts_are_counts_whatever_an_upstream_says(usage):
    count = Count(7)
    count.see_piece()
    told = count.see_usage({"usage": usage})
    assert 0 <= count.cached <= count.prompt < 1 << 53
    assert 0 <= count.completion < 1 << 53
    if not told:
        assert (count.prompt, count.completion) == (7, 1)


def asking(**fields: object) -> Asking:
    raw = json.dumps({"model": "m", "messages": [], **fields}).encode()
    return Asking("chat", "m", raw, (3,), 1, None, bool(fields.get("stream")), False)


def test_refused_fields_are_dropped_when_they_do_not_matter():
    config = UpstreamConfig(base_url="http://x/v1", refuses=("logprobs", "user", "n", "stream_options", "top_p"))
    harmless = asking(logprobs=False, user="u", n=1, stream=True, stream_options={"include_usage": True}, top_p=1.0)
    assert harmless.refused(config) is None
    assert json.loads(harmless.body_for(config, None)) == {"model": "m", "messages": [], "stream": True}
    for field in ({"logprobs": True}, {"n": 2}, {"top_p": 0.5}):
        assert asking(**field).refused(config) == next(iter(field))


@pytest.mark.parametrize("number", ["NaN", "1e999", "-1e999", "1" * 5000])
def test_what_is_no_number_in_json_is_the_client_s_mistake(number):
    raw = b'{"model": "m", "messages": [], "x": %s}' % number.encode()
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        Asking("chat", "m", raw, (3,), 1, None, False, False).body_for(UpstreamConfig(base_url="http://x/v1"), None)


def test_a_tier_s_context_bounds_those_who_set_no_bound_themselves():
    config = UpstreamConfig(base_url="http://x/v1", service_tier="flex", send_user=True)
    body = json.loads(asking(user="u", service_tier="priority").body_for(config, 50))
    assert (body["max_completion_tokens"], body["service_tier"], body["user"]) == (50, "flex", "u")


def test_a_bound_is_given_in_a_field_that_the_upstream_takes():
    def bounds(*refuses: str, **said: int) -> dict[str, int]:
        body = json.loads(asking(**said).body_for(UpstreamConfig(base_url="http://x/v1", refuses=refuses), 50))
        return {name: body[name] for name in ("max_completion_tokens", "max_tokens") if name in body}

    assert bounds("max_completion_tokens") == {"max_tokens": 50}
    assert bounds("max_completion_tokens", "max_tokens") == {}
    assert bounds(max_tokens=7) == {"max_tokens": 7}
    assert bounds(max_completion_tokens=7) == {"max_completion_tokens": 7}
