"""`coserve chips`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from coserve.chips import catalogue
from coserve.cli import app


def test_the_table_has_a_line_for_each_chip() -> None:
    lines = CliRunner().invoke(app, ["chips"]).output.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [chip.name for chip in catalogue()]


def test_a_chip_is_shown_with_the_source_of_each_figure() -> None:
    output = CliRunner().invoke(app, ["chips", "h100"]).output
    assert "3.35 TB/s" in output and output.count("secondary, 20") >= 5


def test_json_has_every_figure() -> None:
    (chip,) = json.loads(CliRunner().invoke(app, ["chips", "h200", "--json"]).output)
    assert chip["memory"][0]["bandwidth"] == chip["figures"]["memory.HBM.bandwidth"]["value"] == 4.8e12


def test_an_unknown_chip_gets_one_line() -> None:
    result = CliRunner().invoke(app, ["chips", "h1000"])
    assert result.exit_code != 0
