"""Where a step's time goes: the parts are those of the step, and add up to it."""

from __future__ import annotations

import json

import pytest

from benchmarks import step_time
from coserve.models.hub import BUILTIN


def test_the_parts_of_a_step_add_up_to_it(tmp_path):
    file, picture = tmp_path / "step.json", tmp_path / "step.png"
    options = ["--model", BUILTIN, "--weights", "auto", "int8", "--streams", "1", "3", "--quick"]
    step_time.main([*options, "--json", str(file), "--plot", str(picture)])
    rows = json.loads(file.read_text())["rows"]
    for weights in ("auto", "int8"):
        for streams in (1, 3):
            parts = {r["part"]: r["ms"] for r in rows if (r["weights"], r["streams"]) == (weights, streams)}
            step = parts.pop("step")
            overhead = parts.pop("overhead")
            assert abs(sum(parts.values()) - step) < 1e-6 * step and all(ms > 0 for ms in parts.values())
            assert overhead == pytest.approx(parts[step_time.SMALL] + parts[step_time.REST])
    assert picture.read_bytes().startswith(b"\x89PNG")
