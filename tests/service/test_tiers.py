"""Tiers: each mistake in the file is one clear line; what a request gets; a discount never costs more."""

from __future__ import annotations

import os
import signal
import threading
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.errors import InvalidRequest
from coserve.service.money import cost
from coserve.service.server import reloading_on_hangup
from coserve.service.tiers import Discount, Price, Tier, Tiers, TiersFile, read_tiers, tiers_path
from tests.service.conftest import start


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "tiers"),
        ("- free", ""),
        ("tiers: {}", "tiers"),
        ("tiers: [free]", "tiers"),
        ("teirs: {free: {}}", "tiers"),
        ("tiers: {free: {}}\nflexi: {priority: 1}", "flexi"),
        ("tiers: {free: {priority: high}}", "tiers.free.priority"),
        ("tiers: {free: {requests_per_minute: 0}}", "tiers.free.requests_per_minute"),
        (f"tiers: {{free: {{requests_per_minute: {10**400}}}}}", "tiers.free.requests_per_minute"),
        (f"tiers: {{free: {{priority: {10**400}}}}}", "tiers.free.priority"),
        (f"tiers: {{free: {{price: {{input: {10**400}}}}}}}", "tiers.free.price.input"),
        ("tiers: {free: {requests_per_minute: 1.5}}", "tiers.free.requests_per_minute"),
        ("tiers: {free: {requests_per_hour: 5}}", "tiers.free.requests_per_hour"),
        ("tiers: {free: {ttft: fast}}", "tiers.free.ttft"),
        ("tiers: {free: {ttft: -1}}", "tiers.free.ttft"),
        ("tiers: {free: {price: {input: -1}}}", "tiers.free.price.input"),
        ("tiers: {free: {price: {input: .inf}}}", "tiers.free.price.input"),
        ("tiers: {free: {price: {input: cheap}}}", "tiers.free.price.input"),
        ("tiers: {free: {price: {output: null}}}", "tiers.free.price.output"),
        ("tiers: {free: {price: {inputs: 1}}}", "tiers.free.price.inputs"),
        ("tiers: {free: {models: base}}", "tiers.free.models"),
        ("tiers: {free: {fine_tuning: {concurrent_jobs: -1}}}", "tiers.free.fine_tuning.concurrent_jobs"),
        ("tiers: {free: {batch: {requests: none}}}", "tiers.free.batch.requests"),
        ("tiers: {flex: {}}", "tiers.flex"),
        ("tiers: {default: {}}", "tiers.default"),
        ("tiers: {1: {}}", "tiers.1"),
        ("tiers: {free: {}}\nflex: {priority: 1, price_factor: 1.5}", "flex.price_factor"),
        ("tiers: {free: {}}\nbatch: {price_factor: 0.5}", "batch.priority"),
    ],
)
def test_each_mistake_is_one_line_with_file_and_field(tmp_path, text, field):
    path = tmp_path / "tiers.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        read_tiers(path)
    assert caught.value.message.startswith(f"{path}: {field}")
    assert all(line.startswith(f"{path}: ") for line in caught.value.message.splitlines())


@pytest.mark.parametrize("content", [b"tiers: [", b"\xff\xfe\xff", b"\x00", b"a: 2026-99-99", b"[" * 5000])
def test_what_is_not_yaml_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "tiers.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="is not YAML") as caught:
        read_tiers(path)
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidRequest, match="Cannot read"):
        read_tiers(tmp_path / "nothing.yaml")


def test_coserves_own_tiers_are_read_where_there_is_no_file(tmp_path):
    assert tiers_path(None, tmp_path) is None
    assert list(read_tiers(None).tiers) == ["free", "developer", "enterprise"]
    (tmp_path / "tiers.yaml").write_text("tiers: {only: {}}")
    assert list(read_tiers(tiers_path(None, tmp_path)).tiers) == ["only"]
    assert tiers_path(Path("named.yaml"), tmp_path) == Path("named.yaml")


TIERS = Tiers(read_tiers(None))


def test_a_request_gets_its_keys_tier():
    for asked in (None, "auto", "default", "scale", "developer"):
        terms = TIERS.terms("developer", asked)
        assert (terms.tier, terms.named, terms.priority, terms.price.input) == (
            "developer",
            "default",
            10,
            Decimal("0.1"),
        )


def test_flex_and_batch_are_later_and_cheaper_at_the_same_limits():
    flex, batch = TIERS.terms("developer", "flex"), TIERS.batch_terms("developer")
    assert [(terms.tier, terms.named, terms.priority) for terms in (flex, batch)] == [
        ("developer", "flex", -10),
        ("developer", "batch", -20),
    ]
    assert flex.price == Price(input=Decimal("0.05"), cached_input=Decimal("0.025"), output=Decimal("0.2"))
    assert flex.goals == TIERS.find("developer")


def test_a_key_may_go_down_and_as_high_as_it_was_told():
    down = TIERS.terms("developer", "free")
    assert (down.tier, down.named, down.priority) == ("free", "free", 0)
    up = TIERS.terms("free", "priority", "developer")
    assert (up.tier, up.named, up.priority) == ("developer", "priority", 10)
    assert TIERS.terms("free", "developer", "enterprise").tier == "developer"
    for own, asked, up_to in (
        ("free", "developer", None),
        ("free", "priority", None),
        ("free", "enterprise", "developer"),
        ("free", "priority", "gone"),
        ("free", "gold", "enterprise"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            TIERS.terms(own, asked, up_to)
        assert caught.value.param == "service_tier"


HOUSE = Tiers(
    TiersFile(
        tiers={
            "house": Tier(requestable=False),
            "free": Tier(priority=1),
            "paid": Tier(priority=2),
            "inner": Tier(priority=3, requestable=False),
        }
    )
)


@pytest.mark.parametrize(("own", "up_to"), [("free", None), ("paid", None), ("free", "paid"), ("free", "inner")])
def test_a_tier_of_the_house_cannot_be_asked_for(own, up_to):
    with pytest.raises(InvalidRequest, match=f"the tier 'house' is not open to requests; this key's tier is '{own}'"):
        HOUSE.terms(own, "house", up_to)


def test_it_is_for_keys_that_have_it():
    assert HOUSE.terms("house", None).tier == HOUSE.terms("house", "house").tier == "house"
    assert HOUSE.terms("free", "inner", "inner").tier == HOUSE.terms("free", "priority", "inner").tier == "inner"
    assert HOUSE.terms("house", "free", "paid").tier == "free"
    assert HOUSE.terms("gone", None).tier == "free"


def test_a_tier_that_is_gone_falls_to_the_lowest():
    assert TIERS.terms("gone", None).tier == "free"
    assert TIERS.batch_terms("gone").tier == "free"


def test_requests_under_way_keep_their_terms():
    tiers = Tiers(read_tiers(None))
    terms = tiers.terms("developer", None)
    tiers.replace(TiersFile(tiers={"only": Tier(priority=1)}))
    assert (terms.goals.itl, tiers.highest) == (0.1, "only")


money = st.decimals(0, 1000, places=6)
priorities = st.integers(-1000, 1000)
discounts = st.builds(Discount, priority=priorities, price_factor=st.decimals(0, 1, places=4))
prices = st.builds(Price, input=money, cached_input=st.none() | money, output=money)
tiers_of = st.builds(Tier, priority=priorities, price=prices)


@given(tier=tiers_of, flex=discounts, batch=discounts, tokens=st.integers(0, 10**9))
def test_a_discount_never_costs_more_or_goes_first(tier, flex, batch, tokens):
    tiers = Tiers(TiersFile(tiers={"only": tier}, flex=flex, batch=batch))
    own = tiers.terms("only", None)
    for terms in (tiers.terms("only", "flex"), tiers.batch_terms("only")):
        assert terms.priority <= own.priority
        for name in ("input", "cached_input", "output"):
            full, less = getattr(own.price, name), getattr(terms.price, name)
            assert (full is None) == (less is None)
            assert full is None or cost(tokens, less) <= cost(tokens, full)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")
def test_hangup_reads_the_file_again_and_a_broken_one_changes_nothing(tmp_path, caplog):
    file = tmp_path / "mine.yaml"
    file.write_text("tiers: {one: {}}")
    server = start(tmp_path, tiers=file)
    assert threading.current_thread() is threading.main_thread()
    with reloading_on_hangup(server):
        for text, names in (("tiers: {two: {}}", ["two"]), ("tiers: {three: {priority: x}}", ["two"])):
            file.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            assert server._service.tiers.names == names
    server.stop()
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "tiers.three.priority" in told


def test_a_broken_file_ends_the_start(tmp_path):
    (tmp_path / "tiers.yaml").write_text("tiers: {one: {priority: x}}")
    with pytest.raises(InvalidRequest, match=r"tiers\.one\.priority"):
        start(tmp_path)
