"""The planner's prediction for this machine against the engine, measured in the same run.

In each round the machine is measured anew (bandwidth, matrix products), then the engine decodes with 1 to 16 streams.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics

from benchmarks.decode import Ours, Plan
from benchmarks.machine import describe_machine, machine_line
from benchmarks.models import SMOLLM2_135M, BenchmarkModel, find_models
from benchmarks.options import benchmark_parser
from benchmarks.report import Row, print_table, progress, write_json
from coserve.kernels.calibration import measure_chip, measure_few_rows
from coserve.planner.replica import Replica
from coserve.planner.shape import load_shape
from coserve.planner.this_machine import from_measured

STREAMS = (1, 2, 4, 8, 16)


def measure(model: BenchmarkModel, plan: Plan) -> list[Row]:
    ours, shape = Ours(model), load_shape(model.path)
    decoder = ours.engine.decoder
    rows = []
    try:
        ours.tokens_per_s(plan.prompts(1, 1000), plan.output)  # warm
        for number in range(plan.rounds):
            formats = decoder.dtype, decoder.weight_dtype
            chip = from_measured(measure_chip(*formats), measure_few_rows(*formats), 8e9, 1)
            replica = Replica(shape, chip)
            for streams in plan.streams:
                progress(f"{model.name}: round {number + 1} of {plan.rounds}, {streams} streams")
                measured = streams / ours.tokens_per_s(plan.prompts(streams, 1000), plan.output)
                step = replica.decode(streams, plan.prompt + plan.output / 2)
                rows.append(
                    {
                        "model": model.name,
                        "round": number + 1,
                        "streams": streams,
                        "measured_ms": 1e3 * measured,
                        "predicted_ms": 1e3 * step.total,
                        "memory_ms": 1e3 * step.memory,
                        "arithmetic_ms": 1e3 * step.arithmetic,
                        "layers_ms": 1e3 * step.latency,
                        "error_%": 100 * abs(step.total / measured - 1),
                    }
                )
    finally:
        ours.close()
    return rows


def main() -> None:
    parser = benchmark_parser("planner_here", __doc__, (SMOLLM2_135M,))
    options = parser.parse_args()
    plan = Plan(STREAMS, 64, 64 if options.quick else 128, options.rounds or (2 if options.quick else 5), options.seed)
    machine = describe_machine()
    print(machine_line(machine))
    rows = [row for model in find_models(options.model) for row in measure(model, plan)]
    print_table(rows)
    error = statistics.median(row["error_%"] for row in rows)
    print(f"median error {error:.1f} % of {len(rows)} steps")
    if options.json:
        write_json(options.json, machine, rows, median_error_pct=error)


if __name__ == "__main__":
    main()
