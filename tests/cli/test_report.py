"""`coserve report`: the sums of the bill, the chips' cost, and what cannot be known."""

from __future__ import annotations

import asyncio
import csv
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from coserve.service.database import Database, sqlite_url
from coserve.service.ledger import Entry, Ledger, Rates
from coserve.service.ledger.chips import ChipHours
from coserve.service.tables import ProjectRow

NOVEMBER = 1_793_491_200  # 2026-11-01, UTC
DAY = 86400
RATES = Rates(Decimal(1), Decimal("0.5"), Decimal(4), Decimal(10))
TIME = ("--since", "2026-11-01", "--until", "2026-12-01")


def request(number: int, **values: object) -> Entry:
    usual = {
        "created_at": NOVEMBER + number * 7200,
        "endpoint": "chat",
        "project_id": "proj-a",
        "key_id": "key-1",
        "tier": "standard",
        "model": "base",
        "prompt_tokens": 1_000_000,
        "completion_tokens": 250_000,
    }
    return Entry(id=f"{number}", **{**usual, **values}).billed(RATES)


ENTRIES = [
    request(-1),  # of October
    request(0),
    request(1, cached_tokens=1_000_000, tier="priority"),
    request(50, project_id="proj-default", adapter="ft:base:house", prompt_tokens=500_000),
    request(51, endpoint="fine_tuning", prompt_tokens=0, completion_tokens=0, trained_tokens=300_000),
]


async def fill(home: Path, price: int | None) -> None:
    home.mkdir()
    database = Database(sqlite_url(home / "coserve.db"))
    await database.open()
    async with database.write() as session:
        usual = {"weight": 1.0, "limits": {}, "created_at": NOVEMBER}
        session.add(ProjectRow(id="proj-a", name="Search <b>&</b>", **usual))
    ledger = Ledger(database, home / "ledger", clock=lambda: NOVEMBER)
    await ledger.open()
    for entry in ENTRIES:
        ledger.write(entry)
    await ledger.close()
    for hour, seconds in ((NOVEMBER - 1, (9, 9, 9)), (NOVEMBER, (1800, 900, 900)), (NOVEMBER + DAY, (0, 1800, 1800))):
        await ChipHours(database, "H100", lambda s=seconds: s, price, clock=lambda h=hour: h).close()
    await database.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """November: 2.5 M tokens in, 0.75 M out, two hours of a chip at $2."""
    asyncio.run(fill(tmp_path / "home", 2 * 10**9))
    return tmp_path / "home"


def test_it_says_what_came_in_and_what_it_cost(run, home):
    result = run("report", *TIME)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "From 2026-11-01 to 2026-12-01, UTC"
    assert lines[1] == "Revenue $8.00: inference $5.00, training $3.00."
    assert lines[2] == "Chips $4.00 for 2.0 hours; margin 50.0%."
    assert lines[3].startswith("A million tokens (input and output) brought $1.54 and cost $1.23")
    assert lines[4] == "Chip time: inference 25.0%, training 37.5%, nothing 37.5%."
    assert lines[5].endswith("Yes: its revenue is 1.25 times what the chips cost.")
    table = [line.split() for line in lines]
    assert ["standard", "2", "1,500,000", "0", "500,000", "300,000", "$6.50", "81.2%"] in table
    assert ["ft:base:house", "1", "500,000", "0", "250,000", "0", "$1.50", "18.8%"] in table
    assert any("Search <b>&</b> (proj-a)" in line for line in lines)


def test_the_files_say_the_same(run, home, tmp_path):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("csv", "json", "html", "png")}
    result = run("report", *TIME, *(part for kind, path in files.items() for part in (f"--{kind}", path)))
    assert result.exit_code == 0, result.output
    found = json.loads(files["json"].read_text())
    assert (found["total"]["revenue_usd"], found["cost_usd"], found["margin"]) == (8.0, 4.0, 0.5)
    assert [use["name"] for use in found["models"]] == ["base", "ft:base:house"]
    assert [day["name"] for day in found["days"]] == ["2026-11-01", "2026-11-05"]
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    for kind in ("tier", "project", "model", "day"):
        assert sum(Decimal(row["revenue_usd"]) for row in rows if row["by"] == kind) == 8
    assert [row["cost_usd"] for row in rows if row["by"] == "chip"] == ["4"]
    page = files["html"].read_text()
    assert "Search &lt;b&gt;&amp;&lt;/b&gt; (proj-a)" in page
    assert "<svg" in page and "http-equiv" not in page and "src=" not in page
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_upstreams_cost_money_beside_the_chips(run, home):
    far = replace(request(60, model="far", upstream="groq"), upstream_cost=10**9)
    asyncio.run(write(home, far, request(61, upstream="box")))
    lines = run("report", *TIME).output.splitlines()
    assert lines[1] == "Revenue $12.00: inference $9.00, training $3.00."
    assert lines[2] == "Chips $4.00 for 2.0 hours, upstreams $1.00; margin 58.3%."
    assert lines[5].endswith("Yes: its revenue is 1.80 times what the chips and upstreams cost.")
    table = [line.split() for line in lines]
    assert ["groq", "1", "1,000,000", "0", "250,000", "$2.00", "$1.00"] in table
    assert ["box", "1", "1,000,000", "0", "250,000", "$2.00", "$0.00"] in table


async def write(home: Path, *entries: Entry) -> None:
    database = Database(sqlite_url(home / "coserve.db"))
    await database.open()
    ledger = Ledger(database, home / "ledger", clock=lambda: NOVEMBER)
    await ledger.open()
    for entry in entries:
        ledger.write(entry)
    await ledger.close()
    await database.close()


def test_another_price_of_the_chips(run, home):
    result = run("report", *TIME, "--chip-price", "8")
    assert "Chips $16.00 for 2.0 hours; margin -100.0%." in result.output
    assert "No: its revenue is 0.31 times" in result.output
    assert "The chips cost nothing" in run("report", *TIME, "--chip-price", "0").output


def test_what_nobody_knows_is_unknown(run, tmp_path):
    asyncio.run(fill(tmp_path / "home", None))
    result = run("report", *TIME)
    assert "Chips unknown for 2.0 hours; margin unknown." in result.output
    assert "--chip-price" in result.output


def test_a_time_without_anything(run, home, tmp_path):
    result = run("report", "--since", "2025-01-01", "--until", "2025-02-01", "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "Revenue $0.00" in result.output
    result = run("report", "--since", "2025-01-01", "--until", "2025-02-01", "--png", tmp_path / "plot.png")
    assert result.exit_code == 2
    assert "nothing to plot" in result.stderr


def test_this_month_is_the_default(run, home):
    assert run("report").output.splitlines()[0].startswith("From 20")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "yesterday"), "2026-11-01"),
        (("--since", "2026-11-02", "--until", "2026-11-01"), "before"),
        (("--csv", "/nowhere/at/all.csv"), "cannot write"),
        (("--home", "/nowhere"), "no database"),
    ],
)
def test_what_cannot_be_is_one_line(run, home, options, said):
    result = run("report", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_matplotlib_a_picture_is_one_clear_error(run, home, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = run("report", *TIME, "--png", tmp_path / "plot.png")
    assert result.exit_code == 2
    assert "pip install 'coserve[plots]'" in result.stderr


def test_a_file_that_is_no_database(run, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "coserve.db").write_bytes(b"not a database at all" * 100)
    result = run("report")
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
