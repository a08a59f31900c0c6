"""The breaker under a clock of its own: by example, and by whatever hypothesis thinks of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coserve.service.upstreams.breaker import Breaker
from coserve.service.upstreams.config import Breaking


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_failures_in_a_row_open_it_and_a_success_starts_the_row_anew():
    breaker = Breaker(Breaking(failures=3), Clock())
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        outcome(breaker.ticket())
    assert breaker.state == "closed"
    breaker.failed(breaker.ticket())
    assert (breaker.state, breaker.ticket()) == ("open", None)


def test_a_share_of_failures_opens_it_without_a_row():
    clock = Clock()
    breaker = Breaker(Breaking(failures=100, share=0.5, window=10, requests=6), clock)
    for _ in range(2):
        breaker.failed(breaker.ticket())
        breaker.succeeded(breaker.ticket())
    clock.now += 11  # another window
    for _ in range(2):
        breaker.failed(breaker.ticket())
        breaker.succeeded(breaker.ticket())
    assert breaker.state == "closed"
    breaker.succeeded(breaker.ticket())
    breaker.failed(breaker.ticket())
    assert breaker.state == "open"


def test_one_probe_at_a_time_and_each_failure_doubles_the_pause():
    clock = Clock()
    breaker = Breaker(Breaking(failures=1, pause=1, longest_pause=3), clock)
    breaker.failed(breaker.ticket())
    for pause in (1, 2, 3, 3):
        assert breaker.seconds_left == pause
        clock.now += pause
        assert breaker.state == "half_open"
        probe = breaker.ticket()
        assert probe is not None
        assert breaker.ticket() is None
        breaker.failed(probe)
    clock.now += 3
    breaker.succeeded(breaker.ticket())
    assert breaker.state == "closed"
    breaker.failed(breaker.ticket())
    assert breaker.seconds_left == 1


def test_a_probe_that_tells_nothing_leaves_room_for_the_next():
    clock = Clock()
    breaker = Breaker(Breaking(failures=1), clock)
    breaker.failed(breaker.ticket())
    clock.now += 1
    breaker.abandoned(breaker.ticket())
    assert breaker.ticket() is not None


def test_what_was_sent_before_it_opened_says_nothing_of_the_probe():
    clock = Clock()
    breaker = Breaker(Breaking(failures=1), clock)
    early, late = breaker.ticket(), breaker.ticket()
    breaker.failed(early)
    clock.now += 1
    probe = breaker.ticket()
    breaker.succeeded(late)
    assert breaker.state == "half_open"
    breaker.succeeded(probe)
    assert breaker.state == "closed"


class AnyOrder(RuleBasedStateMachine):
    """Requests begin and end in any order, time passes: the promises hold throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.rules_ = Breaking(failures=3, pause=1, longest_pause=8, window=5, requests=6)
        self.breaker = Breaker(self.rules_, self.clock)
        self.flying: list[int] = []
        self.probe: int | None = None

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def begin(self) -> None:
        state, ready = self.breaker.state, self.breaker.ready
        ticket = self.breaker.ticket()
        assert (ticket is not None) == ready
        assert not (state == "open" and ticket is not None)
        if ticket is not None:
            self.flying.append(ticket)
            if state == "half_open":
                assert self.probe is None
                self.probe = ticket

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), what=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, data: st.DataObject, what: str) -> None:
        ticket = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        before = self.breaker.state
        getattr(self.breaker, what)(ticket)
        if ticket == self.probe:
            self.probe = None
            assert self.breaker.state == {"succeeded": "closed", "failed": "open", "abandoned": before}[what]
        elif before != "closed":
            assert self.breaker.state == before

    @rule()
    def sign_of_life(self) -> None:
        self.breaker.probe_now()
        assert self.breaker.state != "open"

    @invariant()
    def the_pause_has_an_end(self) -> None:
        assert 0 <= self.breaker.seconds_left <= self.rules_.longest_pause

    @invariant()
    def it_never_stays_shut(self) -> None:
        if self.probe is None and self.breaker.seconds_left == 0:
            assert self.breaker.ready


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.booleans(), max_size=200))
def test_enough_failures_in_a_row_always_open_it(outcomes):
    breaker = Breaker(Breaking(failures=4, requests=10**6), Clock())
    row = 0
    for failed in outcomes:
        ticket = breaker.ticket()
        if ticket is None:
            break
        (breaker.failed if failed else breaker.succeeded)(ticket)
        row = row + 1 if failed else 0
        assert (breaker.state == "open") == (row == 4)
