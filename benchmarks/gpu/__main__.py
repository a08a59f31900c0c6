"""A GPU: is coserve right on it, and how near is it to what the hardware can do? All tables, in one command.

A model of Llama 3.1 8B's shape with random weights, in bfloat16 unless said, is measured through the engine, against a
copy from device to device and a large matrix product in the same run, and against `transformers` and `peft` with the
same weights. Each table says what it measures in its file, `TABLE.py`. A table that fails says so, and the others
go on; one that does not fit into the rest of `--limit` is left out. Exits with status 1 if a table failed, or something
is wrong. An aim that is missed is not wrong: the table says it.
"""

from __future__ import annotations

import argparse
import faulthandler
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path

import torch

from benchmarks.gpu.bench import SIZES, Bench
from benchmarks.machine import Machine, describe_machine, machine_line
from benchmarks.options import seconds
from benchmarks.report import Row, print_table, progress, write_json

# Seconds that each should have on an H200, with and without --quick, in the order that they are run in: those that
# share an engine are neighbours.
NEEDED = {
    "decode": (30, 100),
    "prefill": (8, 15),
    "predictions": (10, 35),
    "training": (30, 60),
    "start": (25, 60),
    "coserved": (90, 180),
    "transformers": (125, 130),
    "kernels": (60, 75),
}
_PACKAGES = ("triton", "transformers", "peft")
_GRACE = 30.0  # seconds after the limit, when something must hang


@dataclass
class Results:
    """What there is so far."""

    machine: Machine
    tables: dict[str, list[Row]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # and why
    lost: bool = False  # a kernel has broken the process's use of the GPU: nothing more can run in it

    def write(self, file: Path | None, bench: Bench) -> None:
        if file is not None:
            rows = [{"table": name, **row} for name, table in self.tables.items() for row in table]
            more = {"ceilings": asdict(bench.ceilings), "failed": self.failed, "skipped": self.skipped}
            write_json(file, self.machine, rows, quick=bench.quick, seed=bench.seed, **more)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a GPU that PyTorch can use (CUDA or ROCm), and there is none here.")
    faulthandler.dump_traceback_later(options.limit + _GRACE, exit=True, file=sys.__stderr__)
    try:
        with tempfile.TemporaryDirectory() as directory:
            failed = run(options, Path(directory))
    finally:
        faulthandler.cancel_dump_traceback_later()
    if failed:
        sys.exit(f"failed or wrong: {', '.join(failed)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="most tables in half a minute: fewer and shorter runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    named = " ".join(NEEDED)
    parser.add_argument("--tables", nargs="+", choices=NEEDED, default=list(NEEDED), metavar="TABLE", help=named)
    parser.add_argument("--limit", type=seconds, metavar="S", help="for all tables; default 600, with --quick 400")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for a checkpoint of 16 GB; default: $TMPDIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the made-up requests and data")
    parser.add_argument("--shape", choices=SIZES, default="llama-8b", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.limit = options.limit or (400.0 if options.quick else 600.0)
    return options


def run(options: argparse.Namespace, directory: Path) -> list[str]:
    """The tables that failed, or in which something is wrong."""
    scratch = options.scratch or Path(tempfile.gettempdir())
    bench = Bench(SIZES[options.shape], options.device, options.quick, options.seed, options.limit, directory, scratch)
    results = Results(describe(options.device))
    machine = results.machine
    print(f"{machine['gpu']}, driver {machine['driver']}; {machine_line(machine)}")
    print(f"{', '.join(f'{name} {machine[name]}' for name in _PACKAGES)}\n\n{bench.ceilings}\n", flush=True)
    try:
        for name in NEEDED:
            if name in options.tables:
                one_table(name, bench, results)
                results.write(options.json, bench)
    finally:
        if not results.lost:
            bench.close_engine()
    for name, why in results.skipped.items():
        print(f"{name}: left out, {why}")
    return [*results.failed, *wrong(results), *(results.skipped if results.lost else ())]


def one_table(name: str, bench: Bench, results: Results) -> None:
    needed = NEEDED[name][not bench.quick]
    if results.lost:
        results.skipped[name] = "the GPU failed before; run it again by itself"
    elif bench.left < needed and bench.device != "cpu":
        results.skipped[name] = f"{needed} s did not fit into the {bench.left:.0f} s that were left"
    else:
        make_table(name, bench, results)


def make_table(name: str, bench: Bench, results: Results) -> None:
    """Measure and print it; whatever goes wrong is said in its place."""
    progress(f"{name}:")
    print(f"## {name}\n")
    try:
        rows = import_module(f"benchmarks.gpu.{name}").measure(bench)
    except Exception as error:
        traceback.print_exc()
        results.failed[name] = f"{type(error).__name__}: {error}"
        results.lost = not gpu_works(bench.device)
        print(f"failed: {results.failed[name]}\n", flush=True)
    else:
        results.tables[name] = rows
        print_table(rows, columns_of(rows))
        print(flush=True)
    if name in results.failed and not results.lost:
        bench.close_engine()  # the next table gets one that has not failed


def gpu_works(device: str) -> bool:
    """After a kernel's illegal access nothing in this process does."""
    try:
        torch.ones(1, device=device).tolist()
    except RuntimeError:
        return False
    return True


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Of all rows, the aims last."""
    named = {column: None for row in rows for column in row}
    return sorted(named, key=lambda column: column in ("aim", "met"))


def wrong(results: Results) -> list[str]:
    """The names of what is not right, however fast it is."""
    found = [row["kernel"] for row in results.tables.get("kernels", []) if row["met"] != "yes"]
    checks = {"transformers": "score of a token, nats", "training": "mean loss", "start": "awake"}
    for name, check in checks.items():
        rows = results.tables.get(name, [])
        found += [f"{name}: {check}" for row in rows if check in row.values() and row.get("met") not in ("yes", None)]
    return found


def describe(device: str) -> Machine:
    """This machine with its GPU, the GPU's driver, and the versions of what takes part."""
    gpu, driver = "no GPU", None
    if device == "cuda":
        one = torch.cuda.get_device_properties(0)
        gpu, driver = f"{one.name}, {one.total_memory / 2**30:.0f} GiB", _driver()
    platform = {"gpu": gpu, "driver": driver, "cuda": torch.version.cuda, "hip": torch.version.hip}
    return describe_machine() | platform | {name: _version(name) for name in _PACKAGES}


def _driver() -> str | None:
    """Of NVIDIA's GPUs; ROCm's is the system's kernel."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
