"""The table of prompts, through the engine: from handing them over to the last first token.

Some long ones at once, then single short ones, which take as long as a step does at least: that reads all weights.

    of matmul = FLOPs of the pass / seconds / (those of a large bfloat16 product)
    of copy   = bytes of the weights / seconds / (a copy's bytes/s)
"""

from __future__ import annotations

import statistics

from benchmarks.client import answers
from benchmarks.gpu.bench import Bench, aim
from benchmarks.report import Row, progress
from coserve.engine import Engine

_TIMES = 10  # that a short one is asked for


def measure(bench: Bench) -> list[Row]:
    engine, number, length = bench.engine(), bench.size.prompts, bench.size.prompt
    long = _prompts(bench, engine, number, length, bench.rounds + 1)
    short = [_prompts(bench, engine, 1, tokens, _TIMES) for tokens in bench.size.short]
    return [long | aim(long["of matmul"], at_least=0.60), *short]


def _prompts(bench: Bench, engine: Engine, number: int, length: int, times: int) -> Row:
    answers(engine, bench.requests(number, length, 1))  # warm-up, and a step's capture
    took = []
    for _ in range(times):
        timelines = answers(engine, bench.requests(number, length, 1))
        took.append(max(timeline.tokens[0] - timeline.due for timeline in timelines))
    seconds, rows = statistics.median(took), number * length
    progress(f"{number} prompts of {length} tokens: {1e3 * seconds:.1f} ms")
    flops = engine.cost.forward(rows, number * length * (length + 1) / 2, rows, number).flops
    return {
        "prompts": f"{number} x {length}",
        "ms": 1e3 * seconds,
        "tokens/s": rows / seconds,
        "TFLOP/s": flops / seconds / 1e12,
        "of matmul": flops / seconds / bench.ceilings.matmul,
        "of copy": engine.cost.forward(1, 1, 1, 1).bytes / seconds / bench.ceilings.copy,
    }
