"""The spool and the meter as files: torn, grown, foreign."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.service.ledger.entry import INTERRUPTED
from coserve.service.ledger.meter import HEAD, SLOT, Meter
from coserve.service.ledger.rejected import Rejected
from coserve.service.ledger.spool import Spool
from tests.service.ledger.stubs import RATES, entry


def spool(folder, **options) -> Spool:
    return Spool(folder, Rejected(folder / "rejected.jsonl"), **options)


def everything(spool: Spool) -> list[str]:
    ids = []
    while not spool.empty:
        ids += [entry.id for entry in spool.read(7)]
        spool.done()
    return ids


def test_files_follow_each_other_and_go(tmp_path):
    first = spool(tmp_path, file_bytes=1000)
    names = [f"{number}" for number in range(50)]
    for name in names:
        first.append(entry(name))
    assert len(list(tmp_path.glob("spool-*"))) > 10
    first.sync()
    first.close()
    again = spool(tmp_path, file_bytes=1000)
    assert everything(again) == names
    assert [path.stat().st_size for path in tmp_path.glob("spool-*")] == [0]
    again.append(entry("more"))
    assert everything(again) == ["more"]


def test_what_is_not_done_is_read_again(tmp_path):
    one = spool(tmp_path)
    for number in range(5):
        one.append(entry(f"{number}"))
    assert [entry.id for entry in one.read(2)] == ["0", "1"]
    assert [entry.id for entry in one.read(3)] == ["0", "1", "2"]
    one.append(entry("5"))
    one.done()
    assert everything(one) == ["3", "4", "5"]


@given(cut=st.integers(0, 700))
def test_a_torn_end_is_cut_off(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("spool")
    one = spool(folder)
    sizes = []
    for number in range(3):
        one.append(entry(f"{number}"))
        sizes.append(one._size)
    one.close()
    left = max(0, sizes[-1] - cut)
    os.truncate(folder / "spool-00000001.jsonl", left)
    again = spool(folder)
    again.append(entry("new"))
    whole = sum(size <= left for size in sizes)
    assert everything(again) == [f"{number}" for number in range(whole)] + ["new"]
    assert not (folder / "rejected.jsonl").exists()


def test_a_line_that_was_damaged_is_set_aside(tmp_path):
    one = spool(tmp_path)
    for number in range(3):
        one.append(entry(f"{number}", prompt_tokens=111))
    path = tmp_path / "spool-00000001.jsonl"
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1].replace(b"111", b"911")
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert everything(one) == ["0", "2"]
    assert b"911" in (tmp_path / "rejected.jsonl").read_bytes()


def recovered(path) -> dict[str, int]:
    meter = Meter(path)
    found = {}
    for row, slot in meter.recover():
        assert row.outcome == INTERRUPTED
        assert row.id not in found
        found[row.id] = row.completion_tokens
        meter.end(slot)
    meter.close()
    return found


def test_the_meter_grows_and_keeps_all(tmp_path):
    meter = Meter(tmp_path / "meter")
    for number in range(3000):
        slot = meter.begin(entry(f"{number}"), RATES)
        slot.words[slot.at + 1] = number
    assert (tmp_path / "meter").stat().st_size == 3 << 20
    del meter, slot  # killed
    assert recovered(tmp_path / "meter") == {f"{number}": number for number in range(3000)}
    assert recovered(tmp_path / "meter") == {}


@given(damage=st.lists(st.tuples(st.integers(HEAD - 8, 400), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_damaged_slot_bills_nothing(tmp_path_factory, damage):
    """Bytes of the body or of its checksum that are not those that were written."""
    path = tmp_path_factory.mktemp("meter") / "meter"
    meter = Meter(path)
    for name in ("whole", "damaged"):
        slot = meter.begin(entry(name), RATES)
        slot.words[slot.at + 1] = 9
    start = slot.at * 8
    before = path.read_bytes()[start : start + SLOT]
    with path.open("r+b") as file:
        for place, byte in damage:
            file.seek(start + place)
            file.write(bytes([byte]))
    same = path.read_bytes()[start : start + len(before.rstrip(b"\0"))] == before.rstrip(b"\0")
    meter.close()
    assert recovered(path) == ({"whole": 9, "damaged": 9} if same else {"whole": 9})


@pytest.mark.parametrize("size", [1, 5000, 1 << 20])
def test_a_file_that_was_cut_or_is_foreign_is_used_anew(tmp_path, size):
    (tmp_path / "meter").write_bytes(b"?" * size)
    assert recovered(tmp_path / "meter") == {}
    meter = Meter(tmp_path / "meter")
    assert meter.begin(entry(), RATES).body is not None
    meter.close()


def test_absurd_names_do_without_protection(tmp_path, caplog):
    meter = Meter(tmp_path / "meter")
    slot = meter.begin(entry(model="m" * 2000), RATES)
    slot.words[slot.at + 1] = 3
    assert slot.read() == (3, 0)
    meter.end(slot)
    meter.close()
    assert "names are too long" in caplog.text
