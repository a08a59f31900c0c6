"""Other predictors on the rows that the planner is held against, and the planner beside them on the same rows.

NVIDIA's AIConfigurator composes times of operators measured on each chip; llm-analysis divides counted bytes and FLOPs
by stated peaks, times a share that its user gives. Both predict `measured_serving.csv`, llm-analysis the tokens a
second of `training_published.csv`, too. How each is asked stands in `benchmarks/planner/peers.py`. They need other
versions of packages than coserve: install them into an environment of their own and name its interpreter with
`--peers-python`. A row that a peer does not answer counts as not answered, and the reasons are printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import describe_machine, machine_line
from benchmarks.planner.case import Case
from benchmarks.planner.peers import PEERS, CannotSay, Job, Peer
from benchmarks.planner_validation import DATA, Fits, Outcome, Table, outcomes, read
from benchmarks.report import median, print_table, progress, write_json
from coserve.planner.constants import FITTED

FILES = ("measured_serving", "training_published")
OURS = ("nothing", "both")
"""What is left out of the fits of the planner's constants."""
WORKER = Path(__file__).resolve().parent / "planner" / "peer_worker.py"


@dataclass(frozen=True)
class Answer:
    """What a peer says of a case."""

    predicted: Mapping[str, float]  # by metric; empty where it has no answer
    seconds: float
    why: str = ""  # there is no answer


class Answers(Protocol):
    """Where peers are asked."""

    installed: Mapping[str, str | None]  # version by package

    def ask(self, package: str, job: Job) -> Answer: ...


class Worker:
    """`peer_worker.py` under the peers' own interpreter."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.installed: Mapping[str, str | None] = self._read()

    def ask(self, package: str, job: Job) -> Answer:
        assert self.process.stdin is not None
        print(json.dumps({"peer": package, "job": job}), file=self.process.stdin, flush=True)
        return Answer(**self._read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended without an answer")  # type: ignore[arg-type]
        return json.loads(line)


def present(peers: Iterable[Peer], worker: Answers) -> list[Peer]:
    """Those that can be asked; of each other package a line says why not."""
    found, missing = [], {}
    for peer in peers:
        if worker.installed.get(peer.package):
            found.append(peer)
        else:
            missing[peer.package] = peer.release
    for package, release in missing.items():
        progress(f"{package} is not installed: pip install {package}=={release}, and --peers-python; left out")
    return found


def ask_all(peer: Peer, cases: Sequence[Case], worker: Answers) -> list[Answer]:
    """One answer a case."""
    found = []
    for number, case in enumerate(cases):
        try:
            found.append(worker.ask(peer.package, peer.jobs[case.table](case)))
        except CannotSay as what:
            found.append(Answer({}, 0.0, f"has no words for {what}"))
        if number % 100 == 99:
            progress(f"{peer.name}: {number + 1} of {len(cases)} rows of {case.table}")
    return found


@dataclass(frozen=True)
class Pair:
    """A measured figure, the peer's prediction of it and the planner's."""

    peer: str
    ours: Outcome
    theirs: Answer

    @property
    def error(self) -> float | None:
        predicted = self.theirs.predicted.get(self.ours.metric)
        return None if predicted is None else abs(predicted / self.ours.measured - 1)


def pairs(peer: Peer, answers: Sequence[Answer], ours: Sequence[Outcome]) -> list[Pair]:
    """For each outcome the answer to its case; `ours` has all outcomes of one case after those of another, in the order
    of `answers`. Metrics that the peer never speaks of (it predicts speeds, not shares of the peak) are left away."""
    cases = dict.fromkeys(id(outcome.case) for outcome in ours)
    by_case = dict(zip(cases, answers, strict=True))
    spoken = {metric for answer in answers for metric in answer.predicted}
    return [Pair(peer.name, outcome, by_case[id(outcome.case)]) for outcome in ours if outcome.metric in spoken]


def summary(found: Sequence[Pair], by: Callable[[Pair], tuple[str, ...]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Median errors in per cent over the figures that the peer answered, and the planner's over the same."""
    groups: dict[tuple[str, ...], list[Pair]] = {}
    for pair in found:
        groups.setdefault(by(pair), []).append(pair)
    return [dict(zip(names, key, strict=True)) | _figures(group) for key, group in groups.items()]


def _figures(group: Sequence[Pair]) -> dict[str, Any]:
    answered = [pair for pair in group if pair.error is not None]
    return {
        "asked": len(group),
        "answered": len(answered),
        "error_%": _per_cent(pair.error for pair in answered),
        "ours_fitted_%": _per_cent(pair.ours.error("nothing") for pair in answered),
        "ours_without_both_%": _per_cent(pair.ours.error("both") for pair in answered),
        "seconds": median(pair.theirs.seconds for pair in answered),
    }


def _per_cent(errors: Iterable[float | None]) -> float | None:
    """The median; a figure that the planner does not predict counts as missed altogether."""
    middle = median(1.0 if error is None else error for error in errors)
    return None if middle is None else round(100 * middle, 1)


def our_seconds(cases: Sequence[Case]) -> float:
    """Of a prediction, on average."""
    asked = [case for case in cases if case.predict]
    started = time.perf_counter()
    for case in asked:
        case.predict(FITTED)  # type: ignore[misc]
    return (time.perf_counter() - started) / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner_peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes: some of the rows")
    parser.add_argument("--every", type=int, metavar="N", help="ask for every N-th row only (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure with its predictions to FILE")
    parser.add_argument(
        "--peers-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter of the environment that has the peers (default: this one)",
    )
    options = parser.parse_args()

    machine = describe_machine()
    print(machine_line(machine))
    worker = Worker(options.peers_python)
    peers = present(PEERS, worker)
    found = []
    if peers:
        for name in FILES:
            table, known = read(DATA / f"{name}.csv", options.quick)
            asked = known[:: options.every or (5 if options.quick else 1)]
            found += compare(peers, table, known, asked, worker)
    worker.close()
    _print(found)
    if options.json:
        write_json(options.json, machine, [_row(pair) for pair in found], versions=worker.installed)


def compare(peers: Sequence[Peer], table: Table, known: Sequence[Case], asked: Sequence[Case], worker: Answers) -> list:
    """Every peer that speaks of such a table, and the planner with its constants fitted on `known`."""
    fits = Fits(known)
    fits.make(fits.keys(table, asked, OURS))
    ours = outcomes(table, asked, fits, OURS)
    progress(f"{table.name}: the planner takes {1e6 * our_seconds(asked):.0f} us a prediction")
    return [
        pair for peer in peers if table.name in peer.jobs for pair in pairs(peer, ask_all(peer, asked, worker), ours)
    ]


def _print(found: Sequence[Pair]) -> None:
    if not found:
        return
    print_table(
        summary(found, lambda p: (p.peer, p.ours.metric, p.ours.case.chip), ("peer", "metric", "chip")),
    )
    print_table(summary(found, lambda p: (p.peer, p.ours.metric), ("peer", "metric")))
    silent = Counter(
        (pair.peer, pair.ours.case.table, _first_words(pair.theirs.why)) for pair in found if pair.theirs.why
    )
    if silent:
        print_table([{"peer": p, "table": t, "figures": n, "why": why} for (p, t, why), n in silent.items()])


def _first_words(why: str) -> str:
    """Enough to tell reasons apart, without the numbers of each row."""
    return why[:90].split(" with the given")[0].split(" with batch_size")[0]


def _row(pair: Pair) -> dict[str, Any]:
    ours = pair.ours
    return {
        "peer": pair.peer,
        "table": ours.case.table,
        "chip": ours.case.chip,
        "model": ours.case.model,
        "metric": ours.metric,
        "measured": ours.measured,
        "predicted": pair.theirs.predicted.get(ours.metric),
        "ours": ours.predicted.get("nothing"),
        "ours_without_both": ours.predicted.get("both"),
        "seconds": pair.theirs.seconds,
        "why": pair.theirs.why,
    }


if __name__ == "__main__":
    main()
