"""The published measurements: every row is read, and the shipped constants explain them as well as the page says."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.planner.case import Case
from benchmarks.planner.fit import GROUPS, START, fit
from benchmarks.planner_validation import DATA, TABLES, read
from coserve.planner.constants import FITTED

ROWS = {
    "measured_serving": 875,
    "operator_times": 492,
    "mlperf_inference_v5_1": 173,
    "inference_published": 184,
    "dataflow_published": 13,
    "training_published": 272,
}


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    return {table.name: read(DATA / f"{table.name}.csv", quick=False)[1] for table in TABLES}


def errors(cases: list[Case], metric: str) -> list[float]:
    return [
        abs(case.predict(FITTED)[metric] / case.measured[metric] - 1)
        for case in cases
        if case.predict and metric in case.measured
    ]


def test_no_row_is_missing_and_none_is_silent(cases) -> None:
    assert {name: len(found) for name, found in cases.items()} == ROWS
    for case in (case for found in cases.values() for case in found):
        assert case.measured and all(value > 0 for value in case.measured.values())
        if case.predict is None:
            assert case.why
        else:
            predicted = case.predict(FITTED)
            assert set(case.measured) <= set(predicted)
            assert all(value > 0 for value in predicted.values())


@pytest.mark.parametrize(
    ("table", "metric", "most"),
    [
        ("measured_serving", "tpot_ms", 0.10),
        ("measured_serving", "ttft_ms", 0.30),
        ("operator_times", "mlp_up_proj_ms", 0.10),
        ("mlperf_inference_v5_1", "output_tokens_per_s", 0.20),
        ("training_published", "tokens_per_s_per_chip", 0.15),
    ],
)
def test_the_shipped_constants_are_the_fitted_ones(cases, table: str, metric: str, most: float) -> None:
    assert statistics.median(errors(cases[table], metric)) < most


def test_a_fit_finds_constants_that_made_the_data(cases) -> None:
    """Rows made by known constants give those constants back."""
    from dataclasses import replace

    group = GROUPS["training"]
    truth = replace(FITTED, training=0.7, training_attention=0.6, training_experts=0.4, activations=90.0)
    made = [
        replace(case, measured={m: v for m, v in case.predict(truth).items() if m in case.measured})
        for case in cases["training_published"]
        if case.fit and case.predict
    ]
    found = fit(group, made, FITTED)
    for name in group.names:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.1), name


def test_without_rows_a_fit_is_its_start() -> None:
    assert fit(GROUPS["ring"], [], FITTED).ring_hop == pytest.approx(START.ring_hop)


@pytest.mark.slow
def test_the_command_prints_medians_and_takes_other_data(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    with (DATA / "dataflow_published.csv").open() as source, mine.open("w", newline="") as target:
        rows = list(csv.DictReader(source))[:3]
        writer = csv.DictWriter(target, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.planner_validation", "--quick", "--data", str(mine), "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "WSE-3" in done.stdout and "without_both_%" in done.stdout
    written = json.loads(out.read_text())
    assert len(written["rows"]) == 3
    assert {"system", "metric", "predicted", "measured", "fitted_on"} <= written["rows"][0].keys()


def test_a_file_in_no_known_layout_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="its columns are those of none of measured_serving"):
        read(other, quick=False)
