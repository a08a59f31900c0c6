"""The benchmarks run, and their figures can be read by a program. How fast anything is, no test says."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import coserving, decode, quantization, training
from benchmarks.client import Timeline, Window, serving_figures
from benchmarks.models import SMOLLM2_135M_CONFIG, write_checkpoint
from benchmarks.report import medians, paired_ratio, write_json
from benchmarks.training_load import Marks
from benchmarks.workload import endless_requests, poisson_arrivals, scaled_shapes, trace_shapes
from coserve.kernels.native import multiplies_bfloat16
from coserve.models.decoder import Decoder
from coserve.models.hub import BUILTIN_DIRECTORY
from coserve.models.tokenizer import Tokenizer
from tests.tiny import tiny_checkpoint

LATENCIES = {"itl_ms_p50", "itl_ms_p99", "ttft_ms_p50", "ttft_ms_p99"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", dtype=torch.bfloat16)


def run(benchmark: Any, checkpoint: Path, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What a benchmark writes with `--json`."""
    file = tmp_path / "figures.json"
    benchmark.main(["--quick", "--json", str(file), "--model", str(checkpoint), *arguments])
    content = json.loads(file.read_text())
    assert content["machine"]["cores"] >= 1
    assert {"cpu", "memory_gib", "python", "torch", "commit", "date"} <= content["machine"].keys()
    assert all(row["model"] == "tiny" for row in content["rows"])
    return content


def is_speed(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def test_coserving_writes_a_row_for_each_setting(checkpoint, tmp_path):
    times = ["--seconds", "0.8", "--warm-up", "0.1", "--tokens", "16", "--rate", "40"]
    content = run(coserving, checkpoint, tmp_path, *times)
    rows = {row["setting"]: row for row in content["rows"]}
    assert list(rows) == ["training", "inference", "both", "two_processes"]
    for setting, row in rows.items():
        assert row["load"] == (0.0 if setting == "training" else 0.5)
        assert row["protect"] == (1.1 if setting == "both" else None)
        assert row.keys() >= LATENCIES
    for setting in ("inference", "both"):
        assert all(is_speed(rows[setting][name]) for name in (*LATENCIES, "output_tokens_per_s"))
    assert is_speed(rows["training"]["training_tokens_per_s"])
    assert rows["inference"]["training_tokens_per_s"] == 0
    assert all(rows["training"][name] is None for name in LATENCIES)
    assert len(content["every_round"]) == len(rows)


def test_coserving_sweeps_the_knob(checkpoint, tmp_path):
    times = ["--seconds", "0.3", "--warm-up", "0.1", "--tokens", "16"]
    content = run(coserving, checkpoint, tmp_path, *times, "--protect", "1.5,goals", "--settings", "inference", "both")
    assert [(row["setting"], row["protect"], row["load"]) for row in content["rows"]] == [
        ("inference", None, 0.5),
        ("both", 1.5, 0.5),
        ("both", "goals", 0.5),
    ]
    assert is_speed(content["models"][0]["saturating_requests_per_s"])


def test_training_writes_a_row_for_each_trainer(checkpoint, tmp_path, capsys):
    content = run(training, checkpoint, tmp_path, "--steps", "2", "--tokens", "16")
    rows = {row["trainer"]: row for row in content["rows"]}
    assert rows.keys() == {"coserve", "peft"}
    assert all(is_speed(row["tokens_per_s"]) for row in rows.values())
    # They do the same work, so the loss is the same.
    assert rows["coserve"]["loss"] == pytest.approx(rows["peft"]["loss"], rel=0.02)
    assert "times peft" in capsys.readouterr().out


def test_decode_writes_a_row_for_each_engine_and_number_of_streams(checkpoint, tmp_path):
    content = run(decode, checkpoint, tmp_path, "--streams", "1", "3", "--output", "8", "--rounds", "1")
    rows = {(row["engine"], row["streams"]): row for row in content["rows"]}
    engines = {"coserve", "transformers"} | ({"transformers-as-stored"} if not multiplies_bfloat16() else set())
    assert rows.keys() == {(engine, n) for engine in engines for n in (1, 3)}
    assert all(is_speed(row["tokens_per_s"]) and is_speed(row["mbu"]) for row in rows.values())


def test_quantization_writes_a_row_for_each_format(checkpoint, tmp_path):
    rows = run(quantization, checkpoint, tmp_path)["rows"]
    assert [row["weights"] for row in rows] == ["bf16", "int8", "int4"]
    assert rows[0]["mb"] > rows[1]["mb"] > rows[2]["mb"] > 0
    assert rows[0]["kl"] == 0 < rows[1]["kl"] < rows[2]["kl"]
    assert all(0 < row["same"] <= 1 < row["perplexity"] for row in rows)


def test_quantised_the_builtin_model_says_about_what_it_said():
    plain, of_int8, of_int4 = quantization.measure(BUILTIN_DIRECTORY, 10)
    assert plain["places"] > 200
    assert of_int8["kl"] < 1e-3 and of_int8["same"] > 0.995
    assert of_int4["kl"] < 0.05 and of_int4["same"] > 0.97
    assert abs(of_int8["perplexity"] / plain["perplexity"] - 1) < 0.01
    assert abs(of_int4["perplexity"] / plain["perplexity"] - 1) < 0.1


def test_the_same_seed_gives_the_same_requests_whatever_the_rate():
    def requests(rate: float, seed: int = 1):
        source = endless_requests("m", vocabulary=300, context=512, seed=seed)
        return list(itertools.islice(poisson_arrivals(source, rate, seed), 50))

    slow, fast = requests(1.0), requests(4.0)
    assert [a.request.prompt for a in slow] == [a.request.prompt for a in fast]
    assert [a.at for a in slow] == pytest.approx([4 * a.at for a in fast])
    assert [a.request.prompt for a in requests(1.0, seed=2)] != [a.request.prompt for a in slow]


@pytest.mark.parametrize("context", [64, 512, 2048, 131072])
def test_every_request_fits_into_the_context(context):
    shapes = scaled_shapes(context)
    assert len(shapes) == len(trace_shapes())
    assert max(shape.prompt + shape.output for shape in shapes) <= context
    assert min(shape.prompt for shape in shapes) >= 1
    assert min(shape.output for shape in shapes) >= 2


def test_waiting_counts_from_when_a_request_was_due_and_only_the_window_counts():
    window = Window(10.0, 20.0)
    inside = Timeline(None, due=11.0, tokens=[12.0, 12.5, 13.5, 25.0])
    before = Timeline(None, due=5.0, tokens=[8.0, 10.5])
    figures = serving_figures([inside, before], window)
    assert figures["ttft_ms_p50"] == pytest.approx(1000)
    assert figures["itl_ms_p50"] == pytest.approx(1000)  # of 0.5, 1.0 and 2.5 s
    assert figures["output_tokens_per_s"] == pytest.approx(0.4)


def test_training_between_two_steps_is_taken_to_be_even(monkeypatch):
    times = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("benchmarks.training_load.time.perf_counter", lambda: next(times))
    marks = Marks()
    marks.add(100)
    marks.add(300)
    assert marks.rate(Window(5.0, 15.0)) == pytest.approx((50 + 150) / 10)
    assert marks.rate(Window(15.0, 35.0)) == pytest.approx(150 / 20)  # nothing after the last step
    assert marks.reached(20.0)
    assert not marks.reached(20.1)


def test_ratios_are_of_the_same_round():
    rows = [
        {"who": who, "round": number, "speed": speed}
        for who, speeds in (("a", [2.0, 20.0, None]), ("b", [1.0, 10.0, 5.0]))
        for number, speed in enumerate(speeds)
    ]
    assert paired_ratio(rows, "speed", {"who": "a"}, {"who": "b"}) == pytest.approx(2.0)
    assert medians(rows, ["who"]) == [
        {"who": "a", "rounds": 3, "speed": 11.0},
        {"who": "b", "rounds": 3, "speed": 5.0},
    ]


def test_what_is_not_a_number_is_null_in_the_file(tmp_path):
    write_json(tmp_path / "new" / "f.json", {"cpu": "x"}, [{"a": math.nan, "b": 1.5}])
    assert json.loads((tmp_path / "new" / "f.json").read_text()) == {
        "machine": {"cpu": "x"},
        "rows": [{"a": None, "b": 1.5}],
    }
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["f.json"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_made_up_checkpoint_is_one_that_we_load(tmp_path, tied):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 600}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    write_checkpoint(tmp_path, SMOLLM2_135M_CONFIG | sizes | heads | {"tie_word_embeddings": tied})
    assert Decoder.from_directory(tmp_path).weight_dtype == torch.bfloat16
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.vocab_size == 600
    assert tokenizer.decode(tokenizer.encode("Grüße")) == "Grüße"
