"""The file of results: whatever is cut off, what was written whole is there, and nothing else."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.service.batches.outputs import EXPIRED, write_files
from coserve.service.batches.requests import Requests
from coserve.service.batches.results import Result, Results

TOTAL = 8
APPENDED = st.lists(
    st.tuples(st.integers(0, TOTAL - 1), st.booleans(), st.text(max_size=20)),
    unique_by=lambda one: one[0],
    max_size=TOTAL,
)


def result(ok: bool, text: str) -> Result:
    return Result(ok, json.dumps({"text": text}).encode())


def check(path: Path, expected: dict[int, Result]) -> None:
    with Results(path, TOTAL) as results:
        assert {i: r for i in range(TOTAL) if (r := results.read(i))} == expected
        assert results.completed == sum(r.ok for r in expected.values())
        assert results.failed == len(expected) - results.completed


@settings(max_examples=60, deadline=None)
@given(APPENDED, st.data())
def test_a_kill_between_or_within_any_two_writes_loses_only_what_was_not_written(appended, data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "results"
        ends, written = [0], {}
        with Results(path, TOTAL) as results:
            for index, ok, text in appended:
                results.append(index, result(ok, text))
                ends.append(path.stat().st_size)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        for (index, ok, text), end in zip(appended, ends[1:], strict=True):
            if end <= cut:
                written[index] = result(ok, text)
        check(path, written)
        missing = [index for index in range(TOTAL) if index not in written]
        with Results(path, TOTAL) as results:
            for index in missing:
                results.append(index, result(True, "again"))
        check(path, {**written, **{index: result(True, "again") for index in missing}})


def test_what_cannot_be_read_counts_as_not_there(tmp_path):
    path = tmp_path / "results"
    path.write_bytes(b'\0\0\0\n9 output {}\n0 output {"a":1}\n0 error {"b":2}\nx output {}\n1 error {"c":3}\n2 outp')
    check(path, {0: Result(True, b'{"a":1}'), 1: Result(False, b'{"c":3}')})
    assert path.read_bytes().endswith(b'{"c":3}\n')


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "results"
    with Results(path, TOTAL) as results:
        results.append(0, result(True, "a"))
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
        with pytest.raises(OSError, match="No space"):
            results.append(1, result(True, "b"))
        monkeypatch.undo()
        results.append(2, result(False, "c"))
    check(path, {0: result(True, "a"), 2: result(False, "c")})


def test_the_files_are_in_the_order_of_the_input(tmp_path):
    lines = [json.dumps({"custom_id": f"r{i}", "body": {}}) for i in range(5)]
    (tmp_path / "input").write_text("\n\n".join(lines))
    requests = Requests(tmp_path / "input", 1000)
    assert [requests[i].custom_id for i in range(len(requests))] == ["r0", "r1", "r2", "r3", "r4"]
    with Results(tmp_path / "results", 5) as results:
        for index in (4, 1, 0, 3):
            results.append(index, result(index != 3, f"{index}"))
        files = write_files("batch-1", requests, results, tmp_path, EXPIRED)
    assert files.output is not None and files.error is not None
    assert [json.loads(line)["text"] for line in files.output.open()] == ["0", "1", "4"]
    unanswered, failed = map(json.loads, files.error.open())
    assert failed == {"text": "3"}
    assert unanswered == {"id": "batch_req_1-2", "custom_id": "r2", "response": None, "error": EXPIRED}
    assert (files.completed, files.failed) == (3, 1)
