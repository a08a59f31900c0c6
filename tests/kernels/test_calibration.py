"""The measurement of this machine: plausible, made once, kept."""

from __future__ import annotations

import json

import pytest
import torch

from coserve.kernels import calibration
from coserve.kernels.calibration import format_name, load_or_measure_chip
from coserve.roofline import Chip


def test_the_chip_is_measured_once_and_kept(tmp_path, monkeypatch):
    file = tmp_path / "cache" / "chip.json"
    first = load_or_measure_chip(file, torch.float32)
    assert 1e9 < first.bandwidth < 1e13
    assert 1e9 < first.flops < 1e14
    monkeypatch.setattr(calibration, "measure_chip", lambda *dtypes: pytest.fail("measured again"))
    assert load_or_measure_chip(file, torch.float32) == first
    other = Chip("c", "float32", bandwidth=1e10, flops=1e12)
    file.write_text("not json")
    monkeypatch.setattr(calibration, "measure_chip", lambda *dtypes: other)
    assert load_or_measure_chip(file, torch.float32) == other
    assert json.loads(file.read_text())


def test_formats_have_one_name_where_they_are_one():
    assert format_name(torch.float32, torch.float32) == "float32"
    assert format_name(torch.float32, torch.bfloat16) == "bfloat16 in float32"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_matrices_of_integers_are_measured_too(weights):
    chip = calibration.measure_chip(torch.float32, weights)
    assert chip.format == f"{weights} in float32" and chip.flops > 1e8 and 0 < chip.efficiency <= 1
    speed, hidden = calibration.measure_few_rows(torch.float32, weights)
    assert speed > 1e8 and 0 <= hidden <= 1
