"""Whenever the process dies, the bill afterwards is right: at any line of the ledger's code, and by a real SIGKILL."""

import asyncio
import mmap
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import coserve.service.ledger
from coserve.service.database import Database, sqlite_url
from coserve.service.ledger import Ledger, meter
from coserve.service.tables import UsageRow
from tests.service.ledger.stubs import RATES, THEN, bill, entry, new_database, opened

SECONDS = 10  # a life takes a tenth of one
SOURCES = str(Path(coserve.service.ledger.__file__).parent)


class Killed(BaseException):
    pass


class Killer:
    """The program stops before the line of the ledger's code that comes as number `moment`."""

    def __init__(self, moment: int):
        self.left = moment

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0:
                raise Killed
        return self

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, kind, *_):
        sys.settrace(self.before)
        return kind is Killed


class Told:
    """What the clients were given: by line, the counts of which one must be on the bill."""

    def __init__(self):
        self.possible: dict[str, set[int]] = {}

    def deliver(self, id: str, line, count: int) -> None:
        self.possible[id].add(count)  # while it is being told, both are right
        line.delivered(count)
        self.possible[id] = {count}


async def live(home: Path, told: Told, script: list[tuple[str, int]], moment: int) -> int:
    """Open the ledger, run the script, close; killed on the way. Returns for how many lines it might have lived on."""
    database = Database(sqlite_url(new_database(home)))
    ledger = Ledger(database, home / "ledger", clock=lambda: THEN, chunk=3)
    lines = {}
    killer = Killer(moment)
    try:
        with killer:
            async with asyncio.timeout(SECONDS):
                await ledger.open()
                for action, number in script:
                    life = f"{len(told.possible)}"
                    if action == "begin":
                        told.possible[life] = {0}
                        lines[life] = ledger.begin(entry(life), RATES)
                    elif action == "flush":
                        await ledger.flush()
                    elif lines:
                        id = sorted(lines)[number % len(lines)]
                        if action == "deliver":
                            told.deliver(id, lines[id], max(told.possible[id]) + number)
                        else:
                            lines.pop(id).close("completed", generated_tokens=10**6)
                await ledger.close()
    except TimeoutError:  # a task was killed as it left a lock, for which the others wait: dead all the same
        assert killer.left < 0
    finally:
        for task in ledger._tasks:
            task.cancel()
        await asyncio.gather(*ledger._tasks, return_exceptions=True)
        await database.close()
    return killer.left


ACTIONS = st.tuples(st.sampled_from(["begin", "deliver", "deliver", "close", "flush"]), st.integers(1, 9))


@pytest.fixture
def small_meter(monkeypatch):
    """Four slots at first: it grows on the way, and opening takes few lines."""
    monkeypatch.setattr(meter, "SEGMENT", mmap.ALLOCATIONGRANULARITY)


def check(told: Told, rows: dict[str, UsageRow]) -> None:
    assert set(rows) <= set(told.possible)
    for id, possible in told.possible.items():
        row = rows.get(id)
        count = row.completion_tokens if row else 0
        assert count in possible
        assert not row or row.cost == (count > 0) * 100 * 150 + count * 600


def bill_after(home: Path, told: Told, lives) -> int:
    """Live those lives, then read the bill, and check it. Returns the lines that the last life had left."""

    async def run():
        for script, moment in lives:
            left = await live(home, told, script, moment)
        async with opened(home) as (database, _):
            return left, await bill(database)

    left, rows = asyncio.run(run())
    check(told, rows)
    return left


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of a driver that was killed
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(st.tuples(st.lists(ACTIONS, max_size=25), st.integers(0, 1000)), min_size=1, max_size=3))
def test_killed_again_and_again_the_bill_is_right(tmp_path_factory, small_meter, lives):
    bill_after(tmp_path_factory.mktemp("home"), Told(), lives)


SCRIPT = [("begin", 1), ("deliver", 1), ("begin", 1), ("deliver", 2), ("close", 1), ("flush", 1), ("deliver", 3)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of a driver that was killed
@pytest.mark.parametrize("step", [17, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_any_line_the_bill_is_right(tmp_path_factory, small_meter, step):
    """A life that leaves something to recover, and one that is killed at every so many a line, while recovering too."""
    moment, left = random.randrange(step), -1
    while left < 0:
        home, told = tmp_path_factory.mktemp("home"), Told()
        left = bill_after(home, told, [([*SCRIPT, ("begin", 1), ("deliver", 1)], 200), (SCRIPT, moment)])
        moment += step
    assert moment > 300, "there were not that few lines"


# --- a process that is killed indeed ----------------------------------------------------------


def serve(home: Path, life: int, output: int) -> None:
    """Requests without end, eight at a time; each delivery is told on the pipe `output`, then counted."""

    async def run():
        database = Database(sqlite_url(home / "db"))
        ledger = Ledger(database, home / "ledger")
        await ledger.open()
        await asyncio.gather(*(requests(ledger, f"{life}-{worker}") for worker in range(8)))

    async def requests(ledger: Ledger, name: str):
        number = 0
        while True:
            number += 1
            id = f"{name}-{number}"
            line = ledger.begin(entry(id), RATES)
            for count in range(1, random.randint(2, 12)):
                os.write(output, f"{id} {count}\n".encode())
                line.delivered(count)
                await asyncio.sleep(0)
            line.close("completed")
            if not number % 50:
                await asyncio.sleep(0.01)

    asyncio.run(run())


def life(home: Path, number: int, seconds: float) -> list[tuple[str, int]]:
    """What a server told until it was killed, so many seconds after its first word."""
    receive, send = os.pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=serve, args=(home, number, send), daemon=True)
    process.start()
    os.close(send)
    said = os.read(receive, 1 << 16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said += os.read(receive, 1 << 16)
    process.kill()
    while more := os.read(receive, 1 << 16):
        said += more
    process.join()
    os.close(receive)
    return [(id, int(count)) for id, count in (line.split() for line in said.decode().splitlines())]


async def read_bill(home: Path) -> dict[str, int]:
    async with opened(home) as (database, _):
        rows = await bill(database)
    for row in rows.values():
        assert row.cost == (row.completion_tokens > 0) * 100 * 150 + row.completion_tokens * 600
    return {id: row.completion_tokens for id, row in rows.items() if row.completion_tokens}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("lives", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_after_sigkill_the_bill_is_what_was_delivered(tmp_path, lives):
    """The last word of each life was said and perhaps not counted any more: there the bill may be one behind."""
    random.seed(lives)
    new_database(tmp_path)
    must, last = {}, {}
    for number in range(lives):
        told = life(tmp_path, number, random.uniform(0, 0.15))
        must.update(told[:-1])
        last.update(told[-1:])
    billed = asyncio.run(read_bill(tmp_path))
    for id, count in last.items():
        assert billed.get(id, 0) in (must.get(id, 0), count)
    assert {id: count for id, count in billed.items() if id not in last} == {
        id: count for id, count in must.items() if id not in last
    }
    print(f"{lives} kills, {len(billed)} lines, {sum(billed.values())} tokens")
