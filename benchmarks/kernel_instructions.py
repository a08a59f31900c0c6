"""Instructions that the CPU kernels' products take, counted by Valgrind: the same on a busy machine as on a quiet one.

For each format of the weights and number of rows, on one thread: instructions a call, and for a thousand
multiplications of an element of x with one of W. Valgrind knows no AVX-512: the kernels take AVX2, or less where
COSERVE_NATIVE says so. Instructions are no time: a kernel that waits for memory takes few.
"""

from __future__ import annotations

if not __package__:  # run as a file
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.options import positive
from benchmarks.report import Row, print_table, progress, write_json
from coserve.kernels.native import library

WEIGHTS = ("float32", "bfloat16", "int8", "int4")
CALL = Path(__file__).with_name("kernel_call.py")


def instructions(valgrind: str, weights: str, rows: int, columns: int, depth: int) -> int:
    """Of one call: what two take more than one. Raises `RuntimeError` with what Valgrind says if it fails."""
    lib = library()
    if lib is None:
        raise RuntimeError("the kernels were not built")
    counts = []
    for calls in (1, 2):
        command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, str(CALL)]
        command += [lib._name, weights, *map(str, (rows, columns, depth, calls))]
        alike = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=alike)
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or found is None:
            raise RuntimeError(f"valgrind: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        counts.append(int(found[1]))
    return counts[1] - counts[0]


def measure(valgrind: str, weights: Sequence[str], rows: Sequence[int], columns: int, depth: int) -> list[Row]:
    found = []
    for form in weights:
        for count in rows:
            calls = instructions(valgrind, form, count, columns, depth)
            each = calls / (count * columns * depth) * 1000
            found.append({"weights": form, "rows": count, "instructions": calls, "for_1000_multiplications": each})
            progress(f"{form}, {count} rows: {calls} instructions")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_instructions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small matrix, few rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS, metavar="FORMAT")
    parser.add_argument("--rows", type=positive, nargs="+", metavar="N")
    options = parser.parse_args(arguments)
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("valgrind is not installed (Debian: apt-get install valgrind)")
    columns, depth = (64, 256) if options.quick else (512, 2048)
    rows = options.rows or ((1, 4) if options.quick else (1, 4, 8, 16, 128))
    machine = describe_machine()
    found = measure(valgrind, options.weights, rows, columns, depth)
    print(f"\n{machine_line(machine)}\nmatrices of {columns} x {depth}\n")
    print_table(found)
    if options.json:
        write_json(options.json, machine, found, columns=columns, depth=depth)


if __name__ == "__main__":
    main()
