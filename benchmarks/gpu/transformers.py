"""The table against `transformers`: its compiled decoding with a static cache, and its continuous batching.

The same weights and loads, one engine after the other: the peer in a process of its own (`peers.py`), whose time to
compile does not count. It decodes greedily, we sample. First of all both score the same text: that says whether the
model as a whole is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.client import answers
from benchmarks.gpu.bench import Bench, aim
from benchmarks.gpu.decode import decoding
from benchmarks.processes import ChildError, child_reports
from benchmarks.report import Row, progress
from coserve.engine import SamplingParams

_ANSWER = 16  # tokens that both score
_ALIKE = 0.1  # nats by which a token's score may differ: bfloat16's rounding, summed in another order
_QUICK_LIMIT, _LIMIT = 150.0, 300.0  # seconds for the peer


@dataclass(frozen=True)
class Ours:
    """What the engine does with the loads that the peer gets."""

    tokens: list[int]  # a prompt, and our answer to it
    logprobs: list[float]  # of the answer
    decoding: dict[int, float]  # tokens/s by streams
    batch: float  # tokens/s of many requests at once, end to end
    dtype: str  # of the arithmetic

    @classmethod
    def measured(cls, bench: Bench) -> Ours:
        engine, size = bench.engine(), bench.size
        text = list(bench.requests(1, size.context // 4, 1)[0].prompt)
        params = SamplingParams(max_tokens=_ANSWER, ignore_eos=True, logprobs=0)
        outputs = list(engine.generate(text, params))
        speeds = {streams: decoding(bench, "bf16", streams)["tokens/s"] for streams in _streams(bench)}
        return cls(
            text + [output.token_id for output in outputs if output.token_id is not None],
            [output.logprob.logprob for output in outputs if output.logprob is not None],
            speeds,
            max(_batch_speed(bench) for _ in range(2)),
            str(engine.decoder.dtype).removeprefix("torch."),
        )


def measure(bench: Bench) -> list[Row]:
    ours = Ours.measured(bench)
    progress(f"coserve: decoding {ours.decoding}, many requests {ours.batch:.1f} tokens/s, scores {ours.logprobs}")
    bench.close_engine()
    told = {"config": bench.size.config, "device": bench.device, "dtype": ours.dtype, "tasks": _tasks(bench, ours)}
    limit = min(_QUICK_LIMIT if bench.quick else _LIMIT, bench.left - 5)
    rows: list[Row] = []
    try:
        for said in child_reports("benchmarks.gpu.peers", told, limit):
            progress(f"transformers: {said}"[:200])
            if said["task"] != "loaded":
                rows.append(compared(said, ours))
    except ChildError as error:
        rows.append({"load": "the rest", "transformers": str(error), "met": "**no**"})
    return rows


def _streams(bench: Bench) -> tuple[int, ...]:
    """A graph is compiled for each: one has to do where time is short."""
    return (1,) if bench.quick else (1, bench.size.streams)


def _tasks(bench: Bench, ours: Ours) -> list[dict[str, Any]]:
    size = bench.size
    load = {"prompt": size.context - size.output // 2, "steps": size.output}
    many = {"requests": size.streams, "prompt": size.context - size.output, "output": size.output}
    return [
        {"name": "agreement", "tokens": ours.tokens, "answer": len(ours.logprobs)},
        *({"name": "compiled", "streams": streams, **load} for streams in _streams(bench)),
        {"name": "continuous", **many, "warm": 2 if bench.quick else size.output, "rounds": 1 if bench.quick else 2},
    ]


def _batch_speed(bench: Bench) -> float:
    """Output tokens/s from handing requests over to the last token."""
    size = bench.size
    timelines = answers(bench.engine(), bench.requests(size.streams, size.context - size.output, size.output))
    return size.streams * size.output / (max(t.tokens[-1] for t in timelines) - timelines[0].due)


def compared(said: dict[str, Any], ours: Ours) -> Row:
    """A row from what the peer reports of a task."""
    if "error" in said:
        return {"load": said["task"], "transformers": said["error"], "met": "**no**"}
    if said["task"] == "agreement":
        apart = max(abs(a - b) for a, b in zip(ours.logprobs, said["logprobs"], strict=True))
        means = [sum(scores) / len(scores) for scores in (ours.logprobs, said["logprobs"])]
        row = {"load": "score of a token, nats", "coserve": means[0], "transformers": means[1], "apart": apart}
        return row | aim(apart, at_most=_ALIKE)
    many = said["task"] == "continuous"
    speed = ours.batch if many else ours.decoding[said["streams"]]
    times = speed / said["tokens_per_s"]
    return {
        "load": "continuous batching, tokens/s" if many else f"static cache, compiled, {said['streams']}, tokens/s",
        "coserve": speed,
        "transformers": said["tokens_per_s"],
        "times": times,
        "compiled in s": said.get("compile_seconds"),
        **aim(times, at_least=2.0 if many else 3.0),
    }
