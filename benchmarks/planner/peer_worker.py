"""Answers for other predictors, in the environment that they are installed in: a line of JSON for a line of JSON.

Run by `benchmarks.planner_peers`, of which it imports nothing: the peers need other versions of packages than coserve.
The first line out says which peers are here, in which versions. Then for each `{"peer": ..., "job": {...}}` comes
`{"predicted": {metric: value}, "seconds": ...}`, or with "why" where the peer raised. What peers print goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Job = dict[str, Any]


def aiconfigurator(job: Job) -> dict[str, float]:
    """`job`: the arguments of its `cli_estimate`."""
    from aiconfigurator.cli.api import cli_estimate

    found = cli_estimate(**job)
    return {"tpot_ms": float(found.tpot), "ttft_ms": float(found.ttft)}


def llm_analysis(job: Job) -> dict[str, float]:
    """`job`: the fields of its configurations, and the arguments of `inference` or of `training`."""
    from llm_analysis.analysis import ActivationRecomputation, LLMAnalysis
    from llm_analysis.config import DtypeConfig, GPUConfig, ModelConfig, ParallelismConfig

    analysis = LLMAnalysis(
        ModelConfig(**job["model"]),
        GPUConfig(**job["gpu"]),
        DtypeConfig(**job["dtype"]),
        ParallelismConfig(**job["parallelism"]),
        **job["efficiency"],
    )
    if "training" in job:
        arguments = dict(job["training"])
        recomputed = ActivationRecomputation(arguments.pop("activation_recomputation"))
        found = analysis.training(activation_recomputation=recomputed, **arguments)
        tokens = found["global_batch_size"] * found["seq_len"] / found["latency_per_iter"]
        return {"tokens_per_s_per_chip": tokens / found["total_num_gpus"]}
    found = analysis.inference(**job["inference"])
    alone = analysis.inference(**{**job["inference"], "batch_size_per_gpu": 1})
    return {"tpot_ms": 1e3 * found["decode_latency"], "ttft_ms": 1e3 * alone["prefill_latency"]}


PEERS = {"aiconfigurator": aiconfigurator, "llm-analysis": llm_analysis}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def answer(peer: str, job: Job) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        reply: dict[str, Any] = {"predicted": PEERS[peer](job)}
    except Exception as error:
        reply = {"predicted": {}, "why": f"{type(error).__name__}: {error}"}
    return {**reply, "seconds": time.perf_counter() - started}


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps({name: installed(name) for name in PEERS}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
