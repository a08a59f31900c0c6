"""A model that is served here goes elsewhere only when its first token would come too late here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coserve.engine import EngineStats, Histogram
from coserve.errors import Unavailable
from coserve.service.upstreams.overflow import LOOK, Overflow
from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import TRAINING
from tests.service.upstreams.conftest import Gateway
from tests.service.upstreams.faulty import refusing_port, status


class BusyEngine(FakeEngine):
    """Says that so many wait, and that first tokens took so long, each time that it is asked."""

    waiting, running, ttft = 0, 1, 0.1
    full = False
    _looks = 0

    def __init__(self) -> None:
        super().__init__("m")
        self.answer = "from here"

    def stats(self) -> EngineStats:
        self._looks += 1
        ttft = Histogram((1.0,), (self._looks, 0), self._looks * self.ttft)
        return replace(super().stats(), requests_waiting=self.waiting, requests_running=self.running, ttft=ttft)

    def submit(self, request, on_output) -> None:
        if self.full:
            raise Unavailable("The queue is full.")
        super().submit(request, on_output)


@pytest.fixture
def engine() -> BusyEngine:
    return BusyEngine()


@pytest.fixture
def gateway(start, one, engine) -> Gateway:
    model = {"via": ["one"], "overflow": True}
    return start({"one": one.url}, model, engine=engine, training=TRAINING)


def test_here_as_long_as_the_goal_is_kept_and_elsewhere_above_it(gateway, engine, one, monkeypatch):
    monkeypatch.setattr("coserve.service.upstreams.overflow.LOOK", 0.0)
    engine.running, engine.waiting, engine.ttft = 4, 8, 0.2  # 0.2 s x (1 + 8 / 4), and the goal is 1 s
    assert gateway.text(stream=True) == "from here"
    engine.waiting = 20  # 0.2 s x (1 + 20 / 4)
    for stream in (False, True):
        assert gateway.text(stream=stream) == "Hello, world!"
    engine.waiting = 0
    assert gateway.text(stream=False) == "from here"
    assert len(one.posts) == 2
    assert [row["upstream"] for row in gateway.rows(4)] == [None, "one", "one", None]


def test_a_full_engine_sends_on(gateway, engine):
    engine.full = True
    for stream in (False, True):
        assert gateway.text(stream=stream) == "Hello, world!"


def test_late_is_better_than_never(gateway, engine, one):
    engine.waiting = 100
    one.default = status(500)
    assert gateway.text(stream=True) == "from here"


def test_a_field_that_no_upstream_takes_stays_here(start, one, engine):
    engine.waiting = 100
    upstream = {"base_url": one.url, "refuses": ["logit_bias"]}
    gateway = start({"one": upstream}, {"via": ["one"], "overflow": True}, engine=engine, training=TRAINING)
    assert gateway.text(stream=False, logit_bias={"65": 1}) == "from here"


def test_this_server_can_be_one_among_several(start, one, engine):
    gone = f"http://127.0.0.1:{refusing_port()}/v1"
    gateway = start({"gone": gone, "one": one.url}, {"via": ["gone", "local", "one"]}, engine=engine, training=TRAINING)
    assert gateway.text(stream=False) == "from here"
    engine.full = True
    gateway = start(
        {"gone": gone, "one": one.url},
        {"via": ["local", "one"]},
        engine=engine,
        training=TRAINING,
        home=gateway.server._settings.home / "2",
    )
    assert gateway.text(stream=True) == "Hello, world!"


def test_the_prediction_counts_those_let_in_since_it_looked():
    engine, now = BusyEngine(), [0.0]
    engine.running, engine.ttft = 2, 0.5
    overflow = Overflow(engine.stats, lambda: now[0])
    assert [overflow.keeps(1.0) for _ in range(4)] == [True, True, True, False]  # 0.5 s x (1 + 0, 1, 2, 3 / 2)
    now[0] += LOOK
    assert overflow.keeps(1.0)  # the engine says that nobody waits


def test_nothing_measured_is_no_wait():
    stats = replace(FakeEngine().stats(), requests_waiting=50, ttft=Histogram((1.0,), (0, 0), 0.0))
    assert Overflow(lambda: stats).keeps(0.001)


def test_the_engine_s_context_bounds_no_answer_of_an_upstream(start, one, tmp_path):
    tiers = tmp_path / "tiers.yaml"
    tiers.write_text("tiers: {only: {context: 8192}}")
    gateway = start({"one": one.url}, engine=FakeEngine(), training=TRAINING, tiers=tiers)
    prompt = [{"role": "user", "content": "x" * 4 * 2000}]
    gateway.client.chat.completions.create(model="m", messages=prompt)
    assert one.posts[0].body["max_completion_tokens"] == 8192 - 2000
