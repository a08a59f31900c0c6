"""The planner beside its peers: who answers what, how far off, and who is not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from benchmarks.planner.case import Case
from benchmarks.planner.peers import PEERS, CannotSay, Job, Peer
from benchmarks.planner_peers import Answer, Pair, Worker, ask_all, pairs, present, summary
from benchmarks.planner_validation import DATA, Outcome, read


class StandIn:
    """Predicts half of what is measured for the first row, is silent for the second, and double for others."""

    def __init__(self, installed: Mapping[str, str | None]):
        self.installed = installed

    def ask(self, package: str, job: Job) -> Answer:
        if job["row"] == 1:
            return Answer({}, 0.5, "OOM")
        return Answer({"tpot_ms": 10.0 * (0.5 if job["row"] == 0 else 2.0)}, 0.25)


class Silent(StandIn):
    def ask(self, package: str, job: Job) -> Answer:
        return Answer({}, 0.0, "" if job else "nothing was asked")


def job(case: Case) -> Job:
    if case.row["n"] == "3":
        raise CannotSay("such things")
    return {"row": int(case.row["n"])}


PEER = Peer("other", "other-package", "1.0", {"t": job})
CASES = [Case("t", {"n": str(n)}, {"tpot_ms": 10.0, "mfu_pct": 50.0}, f"chip {n % 2}", "m") for n in range(5)]


def ours(case: Case) -> list[Outcome]:
    return [
        Outcome(case, metric, measured, {"nothing": 1.1 * measured, "both": 0.7 * measured}, "neither")
        for metric, measured in case.measured.items()
    ]


@pytest.fixture
def found() -> list[Pair]:
    answers = ask_all(PEER, CASES, StandIn({"other-package": "1.0"}))
    return pairs(PEER, answers, [outcome for case in CASES for outcome in ours(case)])


def test_medians_are_over_the_rows_that_the_peer_answers(found) -> None:
    (row,) = summary(found, lambda p: (p.peer, p.ours.metric), ("peer", "metric"))
    assert row == {
        "peer": "other",
        "metric": "tpot_ms",  # it never speaks of MFU
        "asked": 5,
        "answered": 3,  # the second raised, of the fourth it has no words
        "error_%": 100.0,  # of 50, 100 and 100
        "ours_fitted_%": 10.0,
        "ours_without_both_%": 30.0,
        "seconds": 0.25,
    }
    assert [pair.theirs.why for pair in found if pair.theirs.why] == ["OOM", "has no words for such things"]


def test_a_chip_without_any_answer_has_no_error(found) -> None:
    rows = summary(found, lambda p: (p.ours.case.chip,), ("chip",))
    assert [(row["chip"], row["asked"], row["answered"], row["error_%"]) for row in rows] == [
        ("chip 0", 3, 3, 100.0),
        ("chip 1", 2, 0, None),
    ]


def test_a_peer_that_is_not_installed_is_left_out_with_a_word(capsys) -> None:
    there = StandIn({"other-package": None, "third": "2.0"})
    third = Peer("third", "third", "2.0", {})
    assert present([PEER, third], there) == [third]
    assert "other-package is not installed: pip install other-package==1.0" in capsys.readouterr().err


def test_the_worker_says_what_it_has_and_why_it_cannot_answer() -> None:
    worker = Worker(sys.executable)
    try:
        assert set(worker.installed) == {peer.package for peer in PEERS}
        for package, version in worker.installed.items():
            if version is None:
                answer = worker.ask(package, {})
                assert not answer.predicted and "Error" in answer.why
    finally:
        worker.close()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_published_row_is_asked_or_has_a_reason(peer: Peer) -> None:
    for table in peer.jobs:
        _, cases = read(DATA / f"{table}.csv", quick=False)
        answers = ask_all(peer, cases, Silent({}))
        assert len(answers) == len(cases)
        assert all(not answer.why or answer.why.startswith("has no words for") for answer in answers)
        assert any(not answer.why for answer in answers)


def test_without_peers_the_command_ends_well() -> None:
    command = [sys.executable, "-m", "benchmarks.planner_peers", "--quick"]
    worker = Worker(sys.executable)
    worker.close()
    if any(worker.installed.values()):
        pytest.skip("peers are installed here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 2
