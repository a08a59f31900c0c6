"""Which upstream first."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from coserve.service.upstreams.config import ModelConfig
from coserve.service.upstreams.latency import Latencies
from coserve.service.upstreams.routing import Candidate, ranked

NAMES = ("a", "b", "c", "d")
CANDIDATES = st.lists(st.sampled_from(NAMES), unique=True).flatmap(
    lambda names: st.tuples(
        *[
            st.builds(
                Candidate,
                st.just(name),
                st.sampled_from([0.0, 0.0, 1.0, 7.5]),
                st.sampled_from([0.0, 0.1, 0.2]),
                st.sampled_from([Decimal(0), Decimal(1), Decimal("2.5")]),
            )
            for name in names
        ]
    )
)
ROUTINGS = st.sampled_from(["order", "weight", "latency", "cost"])


def model(routing: str, **weights: float) -> ModelConfig:
    weights = weights or dict.fromkeys(NAMES, 1.0)
    return ModelConfig(via=NAMES, routing=routing, weights=weights if routing == "weight" else {})


@given(CANDIDATES, ROUTINGS, st.integers())
def test_everybody_has_a_place_and_the_ready_ones_come_first(candidates, routing, seed):
    found = ranked(model(routing), candidates, Random(seed))
    assert sorted(found, key=lambda c: c.name) == sorted(candidates, key=lambda c: c.name)
    assert [c.seconds_away for c in found] == sorted(c.seconds_away for c in candidates)


@given(CANDIDATES, st.sampled_from(["order", "latency", "cost"]))
def test_among_the_ready_the_best_is_first(candidates, routing):
    ready = [c for c in candidates if c.seconds_away == 0]
    if not ready:
        return
    best = {
        "order": lambda c: NAMES.index(c.name),
        "latency": lambda c: (c.latency, NAMES.index(c.name)),
        "cost": lambda c: (c.cost, NAMES.index(c.name)),
    }[routing]
    assert ranked(model(routing), candidates, Random(1))[0] == min(ready, key=best)


def test_weights_are_shares():
    weighted = model("weight", a=6, b=3, c=0.9, d=0.1)
    random = Random(7)
    first = Counter(ranked(weighted, [Candidate(name) for name in NAMES], random)[0].name for _ in range(5000))
    assert abs(first["a"] - 3000) < 150
    assert abs(first["b"] - 1500) < 150
    assert first["d"] < 120


def test_a_mean_follows_what_happens_and_models_do_not_mix():
    latencies = Latencies()
    assert latencies.of("m", True) == 0
    for _ in range(30):
        latencies.learn("m", True, 1.0)
    for _ in range(30):
        latencies.learn("m", True, 0.1)
    assert 0.1 <= latencies.of("m", True) < 0.11
    assert latencies.of("m", False) == latencies.of("other", True) == 0
