"""The table of prompts, through the engine: some long ones at once, from handing them over to the last first token.

of matmul = FLOPs of the pass / seconds / (those of a large bfloat16 product)
"""

from __future__ import annotations

import statistics

from benchmarks.client import answers
from benchmarks.gpu.bench import Bench, aim
from benchmarks.report import Row, progress


def measure(bench: Bench) -> list[Row]:
    engine, number, length = bench.engine(), bench.size.prompts, bench.size.prompt
    answers(engine, bench.requests(number, length, 1))  # warm-up
    took = []
    for turn in range(1, bench.rounds + 2):
        timelines = answers(engine, bench.requests(number, length, 1))
        took.append(max(timeline.tokens[0] - timeline.due for timeline in timelines))
        progress(f"prompts, round {turn}: {1e3 * took[-1]:.1f} ms")
    seconds, rows = statistics.median(took), number * length
    flops = engine.cost.forward(rows, number * length * (length + 1) / 2, rows, number).flops
    share = flops / seconds / bench.ceilings.matmul
    row = {
        "prompts": f"{number} x {length}",
        "ms": 1e3 * seconds,
        "tokens/s": rows / seconds,
        "TFLOP/s": flops / seconds / 1e12,
        "of matmul": share,
    }
    return [row | aim(share, at_least=0.60)]
