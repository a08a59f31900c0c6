"""`coserve plan`, as a person and as a program use it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coserve.chips import find_chip
from coserve.cli import app

ASKED = [
    "plan",
    "Llama-3.1-70B",
    "--rps",
    "20",
    "--prompt",
    "1000",
    "--output",
    "300",
    "--ttft",
    "500ms",
    "--itl",
    "25ms",
]
FEW = ["--chip", "H100", "--chip", "MI300X", "--chip", "L4"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def fails(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code != 0
    return result.output


def test_the_answer_stands_first_then_a_table_then_who_cannot() -> None:
    output = run(*ASKED, *FEW)
    lines = output.splitlines()
    assert lines[0].startswith("meta-llama/Llama-3.1-70B: 20 requests/s of 1000 + 300 tokens")
    assert lines[1].startswith("Cheapest: ")
    assert "MI300X" in output and "  L4: a token takes at least" in output


def test_json_has_what_the_table_has_and_more() -> None:
    result = json.loads(run(*ASKED, *FEW, "--price-in", "0.6", "--price-out", "0.8", "--json"))
    plan = result["serving"][0]
    assert {"chips", "layout", "ttft_p99_s", "itl_p99_s", "mbu", "mfu", "bound", "margin"} <= plan.keys()
    assert plan["ttft_p99_s"] <= 0.5 and plan["tpot_p99_s"] <= 0.0251
    assert plan["margin"] == pytest.approx(1 - plan["break_even_requests_per_s"] / 20)
    assert result["cannot_serve"][0]["chip"] == "L4"
    assert result["load"]["ttft_goal_s"] == 0.5


def test_training_and_both() -> None:
    training = json.loads(run("plan", "8B", "--train-tokens", "5B", "--deadline", "24h", "--chip", "H100", "--json"))
    assert training["training"][0]["days"] <= 1 and "serving" not in training
    both = json.loads(run(*ASKED, *FEW, "--train-tokens", "50M/day", "--json"))
    for row in both["one_cluster_for_both"]:
        assert row["two_clusters"] == row["serving_chips"] + row["training_chips"]
        assert row["one_cluster"] <= row["two_clusters"]
    assert "One cluster for both" in run(*ASKED, *FEW, "--train-tokens", "50M/day")


def test_a_trace_gives_load_and_peak(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = "".join(f"{t},100,50\n" for t in [*range(0, 600, 10), *range(300, 360)])
    trace.write_text("timestamp,prompt_tokens,completion_tokens\n" + rows)
    load = json.loads(run("plan", "8B", "--trace", str(trace), "--chip", "H100", "--json"))["load"]
    assert load["requests_per_s"] == pytest.approx(120 / 590, rel=0.01)
    assert load["peak"] > 3 and load["prompt"] == 100


def test_a_page_and_a_picture(tmp_path: Path) -> None:
    page, picture = tmp_path / "plan.html", tmp_path / "plan.png"
    run(*ASKED, *FEW, "--train-tokens", "50M/day", "--price-out", "2", "--html", str(page), "--png", str(picture))
    text = page.read_text()
    assert text.startswith("<!doctype html>") and text.count("<svg") == 6
    assert "src=" not in text and "<link" not in text  # it stands alone
    for words in (
        "The roofline",
        "Cost against load",
        "What binds each chip",
        "revenue: break-even",
        "One cluster for both",
    ):
        assert words in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_given_price_is_a_rent_and_counts_everywhere() -> None:
    asked = [*ASKED, "--chip", "MI300X", "--chip", "H100", "--chip", "L40S", "--train-tokens", "50M/day"]
    before, after = (json.loads(run(*asked, *price, "--json")) for price in ([], ["--chip-price", "mi300x=20"]))

    def change(table: str, figure: str) -> dict[str, float]:
        was = {row["chip"]: row[figure] for row in before[table]}
        return {row["chip"]: row[figure] / was[row["chip"]] for row in after[table]}

    times = 20 / find_chip("MI300X").price_per_hour
    for table, figure in (
        ("serving", "usd_per_hour"),
        ("training", "usd"),
        ("one_cluster_for_both", "usd_saved_per_hour"),
    ):
        changed = change(table, figure)
        assert changed.pop("MI300X") == pytest.approx(times)
        assert all(other == pytest.approx(1) for other in changed.values())
    assert after["training"][0]["chip"] != "MI300X"
    assert [row["price_source"] for row in after["serving"] if row["chip"] == "MI300X"] == ["as given"]


def test_a_given_price_takes_the_mark_of_buying_away() -> None:
    asked = ["plan", "8B", "--rps", "1", "--train-tokens", "1M", "--chip", "Gaudi 3"]
    assert find_chip("Gaudi 3").bought
    assert run(*asked).count("*") == 3  # at serving's price, at training's, and where the mark is explained
    assert run(*asked, "--chip-price", "Gaudi 3=1").count("*") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "8B"], "say what is wanted"),
        (["plan", "8B", "--rps", "-2"], "rps must be above 0, not -2"),
        (["plan", "lama-3.1-70b", "--rps", "1"], "did you mean .*Llama-3.1-70B"),
        ([*ASKED, "--chip", "H1000"], "unknown chip 'H1000'.*H100 SXM"),
        (["plan", "8B", "--rps", "1", "--ttft", "500"], "ttft: '500' is not a time"),
        (["plan", "8B", "--rps", "1", "--ttft", "5B"], "ttft: '5B' is not a time"),
        (["plan", "8B", "--train-tokens", "many"], "train-tokens: 'many' is not a number of tokens"),
        (["plan", "8B", "--train-tokens", "500ms"], "train-tokens: '500ms' is not a number of tokens"),
        (["plan", "8B", "--train-tokens", "1e999"], "train-tokens: '1e999' is not a number of tokens"),
        (["plan", "8B", "--train-tokens", "5B", "--deadline", "3M"], "deadline: '3M' is not a time"),
        (["plan", "8B", "--train-tokens", "1B", "--method", "dpo"], "unknown method 'dpo'"),
        (["plan", "8B", "--rps", "1", "--price-in", "-1"], "a price must not be below 0"),
        (["plan", "8B", "--rps", "1", "--chip-price", "H100"], "'H100' is not NAME=USD"),
        (["plan", "8B", "--rps", "1", "--html", "/nowhere/x.html"], "cannot write /nowhere/x.html"),
    ],
)
def test_wrong_input_gets_one_clear_line(arguments: list[str], message: str) -> None:
    assert re.search(message, fails(*arguments)), fails(*arguments)


def test_this_machine_is_measured() -> None:
    result = json.loads(
        run(
            "plan",
            "HuggingFaceTB/SmolLM2-135M",
            "--rps",
            "0.1",
            "--prompt",
            "100",
            "--output",
            "50",
            "--chip",
            "this",
            "--json",
        )
    )
    (plan,) = result["serving"]
    assert plan["chip"] == "this machine" and plan["usd_per_hour"] is None
