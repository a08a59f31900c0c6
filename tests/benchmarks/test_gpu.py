"""The benchmark of a GPU: its kernels are right at a small shape in the interpreter, and each of its tables is made
of a tiny model on the CPU, so that no code of it is first run where time is short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import decode, prefill
from benchmarks.gpu.bench import SIZES, Bench, Ceilings
from benchmarks.gpu.kernels import check, timed, wrong_ones
from benchmarks.gpu.model import random_tensor, shapes
from benchmarks.gpu.start import write_large_checkpoint
from benchmarks.processes import ChildError, child_reports
from coserve.models.config import ModelConfig
from coserve.models.decoder import Decoder

ROOT = Path(__file__).parents[2]
TINY = ["--shape", "tiny", "--device", "cpu", "--quick"]


def tables(tmp_path: Path, *names: str) -> dict[str, list[dict]]:
    """Their rows, of a run in which nothing failed."""
    file = tmp_path / "figures.json"
    gpu.main([*TINY, "--json", str(file), "--scratch", str(tmp_path), "--tables", *names])
    content = json.loads(file.read_text())
    assert not content["failed"] and not content["skipped"]
    assert content["ceilings"]["copy"] > 0 and content["ceilings"]["matmul"] > 0
    assert {"gpu", "driver", "cuda", "transformers", "torch", "commit", "date"} <= content["machine"].keys()
    return {name: [row for row in content["rows"] if row["table"] == name] for name in names}


def test_the_engines_tables(tmp_path, capsys):
    made = tables(tmp_path, "decode", "prefill", "predictions", "coserved")
    decoded = [(row["weights"], row["streams"]) for row in made["decode"]]
    assert decoded == [("int4", 1), ("int8", 1), ("bf16", 1), ("bf16", SIZES["tiny"].streams)]
    assert all(row["tokens/s"] > 0 and row["of copy"] > 0 for row in made["decode"])
    assert all(row["of matmul"] > 0 for row in made["prefill"])
    assert len(made["predictions"]) == 3 and all(row["steps"] > 0 for row in made["predictions"])
    coserved = {row["figure"]: row for row in made["coserved"]}
    assert coserved["training tokens/s"]["alone"] > 0
    assert coserved["ITL ms, p50"]["ratio"] == pytest.approx(
        coserved["ITL ms, p50"]["both"] / coserved["ITL ms, p50"]["alone"]
    )
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("## ")] == [f"## {name}" for name in made]


@pytest.mark.slow
def test_the_tables_of_peers_and_starts(tmp_path):
    made = tables(tmp_path, "training", "start", "transformers")
    losses = next(row for row in made["training"] if row["figure"] == "mean loss")
    assert losses["coserve"] == pytest.approx(losses["peft"], rel=0.02) and losses["met"] == "yes"
    parts = {row["part"]: row for row in made["start"]}
    assert {"imports", "loaded", "first token", "sleep", "wake"} <= parts.keys()
    assert parts["awake"]["met"] == "yes"
    scores, *speeds = made["transformers"]
    assert scores["apart"] < 0.1 and scores["met"] == "yes"
    assert len(speeds) == 2 and all(row["times"] > 0 for row in speeds)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_one_table_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fails(bench: Bench) -> list[dict]:
        raise ValueError("no such luck")

    monkeypatch.setattr(decode, "measure", fails)
    monkeypatch.setattr(prefill, "measure", lambda bench: [{"prompts": 3}])
    file = tmp_path / "figures.json"
    with pytest.raises(SystemExit, match="decode"):
        gpu.main([*TINY, "--tables", "decode", "prefill", "--json", str(file)])
    content = json.loads(file.read_text())
    assert content["failed"] == {"decode": "ValueError: no such luck"}
    assert content["rows"] == [{"table": "prefill", "prompts": 3}]
    assert "failed: ValueError: no such luck" in capsys.readouterr().out


def test_what_does_not_fit_into_the_limit_is_left_out(tmp_path):
    bench = Bench(SIZES["tiny"], "cuda", False, 0, limit=50.0, directory=tmp_path, scratch=tmp_path)
    results = gpu.Results({})
    gpu.one_table("transformers", bench, results)
    assert list(results.skipped) == ["transformers"] and not results.tables and not results.failed


def test_after_the_gpu_failed_nothing_else_is_tried(tmp_path, monkeypatch, capsys):
    def fails(bench: Bench) -> list[dict]:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(decode, "measure", fails)
    monkeypatch.setattr(gpu, "gpu_works", lambda device: False)
    with pytest.raises(SystemExit, match="decode, prefill"):
        gpu.main([*TINY, "--tables", "decode", "prefill"])
    assert "prefill: left out, the GPU failed before" in capsys.readouterr().out


def test_what_is_wrong_is_told_from_what_is_slow():
    right, slow = {"figure": "mean loss", "met": "yes"}, {"figure": "MFU", "met": "**no**"}
    results = gpu.Results({}, {"training": [right, slow], "start": [{"part": "awake", "met": "**no**"}]})
    assert gpu.wrong(results) == ["start: awake"]


def test_the_same_name_gives_the_same_weights_in_every_process():
    known = shapes(ModelConfig.from_dict(SIZES["tiny"].config))
    name = "layers.1.mlp.up_proj.weight"
    first, again = (random_tensor(name, known[name], torch.device("cpu")) for _ in range(2))
    other = random_tensor("layers.0.mlp.up_proj.weight", known[name], torch.device("cpu"))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.float().std()) == pytest.approx(known[name][1] ** -0.5, rel=0.05)


def test_a_large_checkpoint_is_one_that_we_load(tmp_path):
    size = write_large_checkpoint(tmp_path, SIZES["tiny"].config)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and size < sum(file.stat().st_size for file in files)
    decoder = Decoder.from_directory(tmp_path)
    assert sum(tensor.nbytes for tensor in decoder.state_dict().values()) >= size
    assert all(tensor.isfinite().all() for tensor in decoder.state_dict().values())


def test_a_child_that_fails_or_hangs_is_named():
    with pytest.raises(ChildError, match=r"benchmarks.nothing ended with status 1: .*No module"):
        list(child_reports("benchmarks.nothing", {}, 60))
    with pytest.raises(ChildError, match=r"benchmarks.gpu.peers was ended after 0 s"):
        list(child_reports("benchmarks.gpu.peers", {}, 0.2))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN in what is masked
def test_every_case_is_right_at_a_small_shape():
    pytest.importorskip("triton", reason="Triton is not installed, so no GPU kernel is tested")
    from benchmarks.gpu.cases import Shape, all_cases
    from tests.kernels.gpu import interpreter

    interpreter.put_right()
    torch.manual_seed(0)
    small = Shape(64, 4, 2, 16, 128, 300, streams=(1, 3), contexts=(20, 150), prompt=30, cached=1)
    rows = []
    with torch.inference_mode():
        for case in all_cases(small):
            assert case.copies == 1 and case.bytes > 0
            case.launch(0)
            rows.append({"kernel": case.name} | check(case))
            last = case
        row = timed(last, 0.01, Ceilings(1e9, 1e9), "cpu")
    assert row["us"] > 0 and row["of copy"] > 0
    assert len({row["kernel"] for row in rows}) == len(rows) > 30
    assert not wrong_ones(rows), [row for row in rows if row["kernel"] in wrong_ones(rows)]


def test_kernels_that_are_wrong_are_named():
    row = {"kernel": "norm", "met": "yes"}
    assert wrong_ones([row, row | {"kernel": "a", "met": "**no**"}]) == ["a"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "benchmarks.gpu needs a GPU that PyTorch can use (CUDA or ROCm), and there is none here.\n"
