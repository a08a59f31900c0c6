"""coserve beside llama.cpp and OpenVINO GenAI: what is written, who is not there, that all load the same weights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import cpu_decode
from benchmarks.cpu_decode import OURS, Case, EngineError, Plan, Worker, beside_peers, in_turn, summary
from benchmarks.cpu_engines.setup import Setup, kv_elements
from benchmarks.cpu_engines.worker import ENGINES, installed
from benchmarks.models import LLAMA_1B_CONFIG, BenchmarkModel, write_checkpoint
from benchmarks.others import Others, cores_between

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 600}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
CONFIG = LLAMA_1B_CONFIG | SIZES | HEADS | {"max_position_embeddings": 512}


class SilentWorker:
    process = SimpleNamespace(pid=os.getpid())

    def mbu(self, *_: object) -> float:
        return 0.5


ABSENT = [engine for engine in ENGINES if engine != OURS and installed(engine) is None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    write_checkpoint(directory, CONFIG)
    return directory


def test_a_row_for_each_case_and_a_word_for_each_peer_that_is_not_there(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "figures.json"
    sizes = ["--streams", "1", "2", "--prompt", "8", "--output", "8", "--prefill", "16"]
    arguments = ["--quick", "--json", str(file), "--model", str(checkpoint), "--weights", "bf16", *sizes]
    cpu_decode.main([*arguments, "--engines", OURS, *ABSENT])
    content = json.loads(file.read_text())
    assert content["machine"]["cores"] >= 1
    assert list(content["versions"]) == [OURS]
    rows = {(row["phase"], row["streams"]): row for row in content["rows"]}
    assert rows.keys() == {("prefill", 1), ("decode", 1), ("decode", 2)}
    assert len(content["every_round"]) == 2 * len(rows)
    for (phase, _), row in rows.items():
        assert (row["model"], row["weights"], row["engine"], row["rounds"]) == ("tiny", "bf16", OURS, 2)
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in ("tokens_per_s", "ceiling_gb_per_s"))
        assert row["mbu"] is None if phase == "prefill" else row["mbu"] > 0
        assert row["times_better_peer"] is None
    said = capsys.readouterr().err
    assert all(f"{engine} is not installed" in said for engine in ABSENT)


def test_what_an_engine_raises_is_said_and_the_others_go_on(checkpoint):
    worker = Worker(sys.executable)
    plan = Plan((Case("decode", 1, 8, 8),), ("bf16",), 1, 0)
    setup = plan.setup(BenchmarkModel("tiny", checkpoint), "bf16")
    with pytest.raises(EngineError, match="does-not-exist"):
        worker.load(OURS, replace(setup, checkpoint="does-not-exist"))
    worker.process.kill()
    with pytest.raises(EngineError, match="ended with status"):
        worker.run([[16]], 1)
    worker.close()


def test_each_goes_first_once_in_as_many_rounds_as_there_are():
    assert [in_turn("abc", number)[0] for number in (1, 2, 3, 4)] == ["a", "b", "c", "a"]
    assert all(sorted(in_turn("abc", number)) == ["a", "b", "c"] for number in (1, 2, 3))
    assert in_turn("", 3) == []


def test_the_ratio_is_to_the_better_peer_of_the_same_round():
    speeds = {OURS: (10.0, 30.0), "llama-cpp-python": (5.0, 10.0), "openvino-genai": (4.0, 20.0)}
    same = {"model": "m", "weights": "int8", "phase": "decode", "streams": 1}
    rows = [
        same | {"engine": engine, "round": number, "tokens_per_s": speeds[engine][number - 1]}
        for number, engines in ((1, list(speeds)), (2, list(speeds)[::-1]))
        for engine in engines
    ]
    found = beside_peers(rows)
    ours = [row["times_better_peer"] for row in found if row["engine"] == OURS]
    assert ours == [2.0, 1.5]
    table = summary(found)
    assert [row["engine"] for row in table] == list(ENGINES)
    assert table[0]["times_better_peer"] == pytest.approx(1.75)
    alone = beside_peers([row for row in rows if row["engine"] == OURS])
    assert all(row["times_better_peer"] is None for row in alone)


def test_other_programs_are_counted_and_our_own_are_not():
    others = Others.than([])
    if others.look() is None:
        pytest.skip("this system has no /proc/stat")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            first, ours = others.look(), Others.than([busy.pid]).look()
            time.sleep(1.0)
            theirs, own = cores_between(first, others.look()), cores_between(ours, Others.than([busy.pid]).look())
        finally:
            busy.kill()
    assert theirs > own + 0.02
    assert cores_between(None, first) is None


def test_a_disturbed_measurement_is_repeated_and_the_quietest_counts(monkeypatch):
    worker, seen = SilentWorker(), []
    busy = iter([0.0, 0.5, 0.0, 0.3, 0.0, 0.05])  # while waiting, while measuring, ...
    monkeypatch.setattr("benchmarks.others.time.sleep", lambda _: None)
    monkeypatch.setattr("benchmarks.cpu_decode.measure_bandwidth", lambda: 1e9)
    for module in ("cpu_decode", "others"):
        monkeypatch.setattr(f"benchmarks.{module}.cores_between", lambda *_: next(busy))
    worker.run = lambda prompts, output: seen.append(prompts) or [[1.0, 2.0]]
    case = Case("decode", 1, 8, 8)
    row = cpu_decode._least_disturbed(case, {OURS: worker}, OURS, 600, "0 1", patience=60.0)
    assert row["others_cores"] == 0.05
    assert len(seen) == 3 and seen[0] != seen[1] != seen[2]
    busy = iter([0.5, 0.3])
    assert cpu_decode._least_disturbed(case, {OURS: worker}, OURS, 600, "0 1", patience=0.0)["others_cores"] == 0.5


def test_each_round_has_prompts_of_its_own_and_all_engines_the_same():
    case = Case("decode", 3, 16, 8)
    first = case.prompts(600, "0 1")
    assert first == case.prompts(600, "0 1") != case.prompts(600, "0 2")
    assert [len(prompt) for prompt in first] == [16] * 3
    assert all(16 <= token < 600 for prompt in first for token in prompt)


def test_a_file_is_made_once_and_again_for_another_checkpoint(checkpoint, tmp_path):
    setup = Setup("tiny", str(checkpoint), "int8", 1, 1, 256, 256, str(tmp_path / "cache"))
    calls = []

    def make(path: Path) -> None:
        calls.append(path)
        path.write_text("made")

    assert setup.made(".x", make) == setup.made(".x", make)
    assert len(calls) == 1
    other = tmp_path / "other"
    other.mkdir()
    write_checkpoint(other, CONFIG, seed=1)
    assert replace(setup, checkpoint=str(other)).made(".x", make).read_text() == "made"
    assert len(calls) == 2

    def fail(path: Path) -> None:
        path.mkdir()
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        setup.made(".y", fail)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".x"}


def test_keys_and_values_are_counted_once_for_each_group_of_heads():
    assert kv_elements(CONFIG) == 2 * 2 * 2 * 16


# How far a weight may be off, in steps: the largest of 32 weights is 127 steps in Q8_0 and 8 in Q4_0.
@pytest.mark.parametrize(("weights", "steps"), [("bf16", None), ("int8", 127), ("int4", 8)])
@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_holds_the_checkpoints_weights(tmp_path, weights, steps, tied):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: the GGUF files are not checked")
    from benchmarks.cpu_engines.gguf_file import gguf_name, write_gguf

    write_checkpoint(tmp_path, CONFIG | {"tie_word_embeddings": tied})
    write_gguf(tmp_path, tmp_path / "m.gguf", weights)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["llama.rope.freq_base"].contents() == pytest.approx(CONFIG["rope_theta"])
    stored = load_file(tmp_path / "model.safetensors")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found.keys() == {gguf_name(name) for name in stored}
    for name, expected in stored.items():
        tensor = found[gguf_name(name)]
        array = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Neighbours 2i and 2i+1 of a head are elements i and i+8 of it in the checkpoint.
            heads = array.view(-1, 8, 2, array.shape[-1])
            array = torch.cat([heads[:, :, 0], heads[:, :, 1]], dim=1).view_as(array)
        assert array.shape == expected.shape
        if steps is None or expected.ndim == 1:
            assert torch.equal(array, expected.float())
        else:
            here = 127 if name in ("model.embed_tokens.weight", "lm_head.weight") else steps
            blocks = expected.float().view(-1, 32)
            largest = blocks.abs().amax(1, keepdim=True)
            # A whole step at Q4_0's other end, where there is one value less; half a step elsewhere, and rounding.
            allowed = largest / here * (1.01 if here == 8 else 0.55)
            assert torch.all((array.view(-1, 32) - blocks).abs() <= allowed)


def test_no_gguf_file_of_another_architecture(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: the GGUF files are not checked")
    from benchmarks.cpu_engines.gguf_file import write_gguf

    write_checkpoint(tmp_path, CONFIG | {"attention_bias": True})
    with pytest.raises(ValueError, match="plain"):
        write_gguf(tmp_path, tmp_path / "m.gguf", "int8")
