"""The table of decoding, through the engine: tokens/s, and the share of a copy's bandwidth that a step's reads reach.

N requests at once, sampled at temperature 1; timed at the engine's callbacks, from when every stream has its first
token to when the first stream has its last. Prompts are so long that the context is as said half-way through.

    of copy = (bytes of the weights + of the keys and values that a step reads) * steps/s / (a copy's bytes/s)
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from benchmarks.client import Timeline, answers
from benchmarks.decode import decode_speed, step_bytes
from benchmarks.gpu.bench import Bench, aim
from benchmarks.gpu.model import WEIGHTS
from benchmarks.report import Row, median, progress

_AIMS = {(1, "bf16"): 0.85, (1, "int8"): 0.75, (1, "fp8"): 0.75, (1, "int4"): 0.75}  # by streams and weights
_MANY_STREAMS = 0.75


def measure(bench: Bench) -> list[Row]:
    """The plain weights last: their engine is what the next tables need."""
    rows = []
    for weights in reversed(WEIGHTS):
        if bench.device == "cpu" and weights == "fp8":
            continue  # no kernels of ours
        many = weights == "bf16" or not bench.quick
        rows += [decoding(bench, weights, streams) for streams in ((1, bench.size.streams) if many else (1,))]
    return rows


def decoding(bench: Bench, weights: str, streams: int) -> Row:
    engine, output = bench.engine(weights), bench.size.output
    prompt = bench.size.context - output // 2
    answers(engine, bench.requests(streams, prompt, output))  # captures the steps of all lengths
    speeds, gaps = [], []
    for number in range(1, bench.rounds + 2):
        timelines = answers(engine, bench.requests(streams, prompt, output))
        speeds.append(decode_speed([timeline.tokens for timeline in timelines]))
        gaps.append(typical_gap(timelines))
        progress(f"decode, {weights}, {streams} streams, round {number}: {speeds[-1]:.1f} tokens/s")
    speed = statistics.median(speeds)
    moved = step_bytes(engine.cost, streams, prompt, output) * speed / streams
    share = moved / bench.ceilings.copy
    return {
        "weights": weights,
        "streams": streams,
        "context": bench.size.context,
        "tokens/s": speed,
        "step ms": 1e3 * streams / speed,
        "itl ms p50": 1e3 * (median(gaps) or 0.0),
        "GB/s": moved / 1e9,
        "of copy": share,
        **aim(share, at_least=_AIMS[1, weights] if streams == 1 else _MANY_STREAMS),
    }


def typical_gap(timelines: Sequence[Timeline]) -> float:
    """The median time between two tokens of a stream, once all of them decode."""
    start = max(timeline.tokens[0] for timeline in timelines)
    return statistics.median(b - a for t in timelines for a, b in itertools.pairwise(t.tokens) if a >= start)
