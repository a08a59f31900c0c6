"""How long a start takes: every way and format is a start of its own, and the parts add up to it."""

from __future__ import annotations

import json

import pytest

from benchmarks import start
from coserve.models.hub import BUILTIN


def test_the_parts_of_a_start_add_up_to_it(tmp_path):
    file, home = tmp_path / "start.json", tmp_path / "home"
    options = ["--model", BUILTIN, "--weights", "int8", "--rounds", "1", "--home", str(home)]
    start.main([*options, "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    for way in start.WAYS:
        parts = {row["part"]: row["seconds"] for row in rows if row["way"] == way}
        assert all(seconds > 0 for seconds in parts.values())
        total, within = parts.pop("total"), parts.pop("sum", 0.0)
        assert sum(parts.values()) == pytest.approx(total)
        assert within <= parts.get("weights", 0.0)
    assert any((home / "cache" / "weights").iterdir())
