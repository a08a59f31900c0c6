"""What is wrong with an input file, line by line."""

import json

import pytest

from coserve.service.batches.mistakes import MOST_TOLD, Rules, check

RULES = Rules("/v1/completions", frozenset({"base"}), 1000, 500)
GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "base", "prompt": "x"}}


def mistakes(path, *lines, rules=RULES):
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    (path / "input").write_bytes(text)
    report = check(path / "input", rules)
    return [(mistake.code, mistake.param, mistake.line) for mistake in report.mistakes]


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b"[" * 400, "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"x" * 600, "line_too_long", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("body"), "missing_required_parameter", "body"),
        ({**GOOD, "custom_id": 7}, "invalid_custom_id", "custom_id"),
        ({**GOOD, "custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({**GOOD, "custom_id": "first"}, "duplicate_custom_id", "custom_id"),
        ({**GOOD, "method": "GET"}, "invalid_method", "method"),
        ({**GOOD, "url": "/v1/chat/completions"}, "invalid_url", "url"),
        ({**GOOD, "body": "text"}, "invalid_body", "body"),
        ({**GOOD, "body": {}}, "missing_required_parameter", "body.model"),
        ({**GOOD, "body": {"model": 1}}, "missing_required_parameter", "body.model"),
        ({**GOOD, "body": {"model": "gpt-9"}}, "model_not_found", "body.model"),
    ],
)
def test_each_mistake_is_told_with_its_line(tmp_path, line, code, param):
    first = {**GOOD, "custom_id": "first"}
    assert mistakes(tmp_path, first, b"", line, {**GOOD, "custom_id": "last"}) == [(code, param, 3)]


def test_a_good_file_has_none(tmp_path):
    assert mistakes(tmp_path, *[{**GOOD, "custom_id": str(i)} for i in range(50)], b"", b"  ") == []


def test_mistakes_of_the_whole_file(tmp_path):
    assert mistakes(tmp_path) == [("empty_file", None, None)]
    assert mistakes(tmp_path, b"", b" ") == [("empty_file", None, None)]
    many = [{**GOOD, "custom_id": str(i)} for i in range(1001)]
    assert mistakes(tmp_path, *many) == [("too_many_requests", None, None)]
    assert mistakes(tmp_path, *many, rules=Rules("/v1/completions", frozenset({"base"}), None, 500)) == []
    assert len(mistakes(tmp_path, *[b"{"] * 1000)) == MOST_TOLD
