"""Who runs, and which tokens go into the next step: by priority, then by what each share was served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from coserve.engine.active import ActiveRequest
from coserve.engine.blocks import BlockPool, blocks_for
from coserve.engine.config import EngineConfig
from coserve.engine.fairness import TokenCounters
from coserve.engine.plan import Plan
from coserve.engine.segment import UNKNOWN, Segment
from coserve.engine.waiting import WaitingQueue


class Scheduler:
    """Owns the waiting and running requests and their blocks.

    A request is admitted when there is a seat (`max_num_seqs`) and the blocks of its whole prompt are free. Blocks for
    generated tokens are taken one by one. Where something is missing, requests of lower priority give way, the lowest
    first, of equals the latest. One that only gives up its seat is *parked*: it waits with its blocks, and goes on from
    there. Missing blocks are taken from the parked first; what is lost is computed again later.

    What drives others out is a higher priority, not age; and a request that was admitted on a rank to which it has
    risen keeps that rank. So nobody is driven out in turns.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool):
        self.config, self.pool = config, pool
        self.counters: defaultdict[int, TokenCounters] = defaultdict(TokenCounters)  # by priority
        self.waiting = WaitingQueue(config.aging_seconds, self.counters)
        self.running: list[ActiveRequest] = []  # in the order of admission
        self.parked: list[ActiveRequest] = []  # those of the waiting that keep their blocks
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or len(self.waiting))

    @property
    def backlog(self) -> bool:
        """Whether prompts wait to be computed: then whatever is done besides delays all of them."""
        return bool(len(self.waiting)) or any(not r.decoding for r in self.running)

    def add(self, request: ActiveRequest) -> None:
        self.counters[request.priority].join(request.share)
        self.waiting.add(request)

    def release(self, request: ActiveRequest) -> None:
        """Forget a request that has ended, wherever it stands."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
            if request in self.parked:
                self.parked.remove(request)
        self.pool.give_back(request.blocks)
        self.counters[request.priority].leave(request.share)

    def foremost(self) -> list[ActiveRequest]:
        """The running requests of the highest priority, and those that have risen to it."""
        highest = max((r.priority for r in self.running), default=0)
        return [r for r in self.running if r.rank >= highest]

    def protected(self) -> list[ActiveRequest]:
        """Those whose deadlines count: the foremost, and who waits with their priority or a higher one."""
        highest = max((r.priority for r in self.running), default=None)
        waiting = (r for r in self.waiting if highest is None or r.priority >= highest)
        return [*self.foremost(), *waiting]

    def plan(self, max_tokens: int, now: float) -> Plan:
        """The next step's segments of the highest priority, and who could ride along. Takes the blocks they need.

        `max_tokens`: of decoding requests and chunks of prompts together; requests that decode all go along.
        """
        for request in [r for r in self.running if r.decoding]:
            self._grow(request)
        self._admit(max_tokens, now)
        plan = Plan()
        foremost = self.foremost()
        prompts = [r for r in foremost if not r.decoding]
        for request in foremost:
            if request.decoding:
                self.take(plan, request, 1, now)
        budget = max_tokens - len(plan.chosen)
        for request in prompts:
            if budget <= 0:
                break
            length = min(request.remaining, budget)
            self.take(plan, request, length, now)
            budget -= length
        plan.lower = self._lower(foremost, now)
        return plan

    def plan_ahead(self, plan: Plan, now: float) -> Plan | None:
        """The step after `plan`, of whose tokens none is known yet: all who decode go on, and take their blocks.

        None where it would be another one: somebody waits, is of lower priority or not among them, has to repeat a
        token, or a block lacks.
        """
        running = set(map(id, self.running))
        going_on = [(r, s) for r, s in plan.chosen if id(r) in running]
        if len(self.waiting) or plan.lower or len(going_on) < len(running):
            return None
        if any(s.start != r.computed for r, s in going_on):
            return None
        going_on = [(r, s) for r, s in going_on if r.completion_tokens + 1 < r.max_tokens]
        growing = [r for r, s in going_on if len(r.blocks) < blocks_for(s.start + 2)]
        if not going_on or len(growing) > self.pool.free:
            return None
        for request in growing:
            request.blocks += self.pool.take(1) or []
        ahead = Plan()
        for request, segment in going_on:
            self._charge(request, 1)
            request.last_turn = now
            following = Segment("decode", UNKNOWN, segment.start + 1, request.blocks, request.adapter, sample=True)
            ahead.chosen.append((request, following))
        return ahead

    def take(self, plan: Plan, request: ActiveRequest, length: int, now: float) -> None:
        """Put so many of a request's next tokens into the plan, and charge its share for the token it will get."""
        end = request.computed + length
        segment = Segment(
            "decode" if request.decoding else "prefill",
            request.tokens[request.computed : end],
            request.computed,
            request.blocks,
            request.adapter,
            sample=end == len(request.tokens),
        )
        if segment.sample:  # a prompt keeps its turn until it is computed
            self._charge(request, 1)
            request.last_turn = now
        plan.chosen.append((request, segment))

    def take_back(self, request: ActiveRequest) -> None:
        """A token that was planned for a request has come to nothing: its share has not had it."""
        self.counters[request.priority].refund(request.share, 1, request.request.weight)

    def _lower(self, foremost: list[ActiveRequest], now: float) -> list[ActiveRequest]:
        """The running requests of lower priorities, whose turn it is first: they rotate."""
        if len(foremost) == len(self.running):
            return []
        ahead = set(map(id, foremost))
        lower = [r for r in self.running if id(r) not in ahead]
        for request in lower:
            if now - request.last_turn >= self.config.aging_seconds:  # the protection of others starves it
                request.rank, request.last_turn = request.rank + 1, now
        lower.sort(key=lambda r: (-r.rank, self.counters[r.priority].served(r.share), r.last_turn, r.arrived))
        return lower

    def _admit(self, max_tokens: int, now: float) -> None:
        """Admit those whose turn it is, as long as there would be tokens left for them in this step.

        Where there is no place for one that has risen to its turn, a higher priority passes it if that can drive others
        out; it leaves alone what is free, for which the other one waits.
        """
        while self._places():
            turn = self.waiting.next(now)
            highest = self.waiting.next(now, self.waiting.highest)
            if not (
                self._admit_one(*turn, max_tokens, now)
                or (turn != highest and self._admit_one(*highest, max_tokens, now, passing=True))
            ):
                return

    def _places(self) -> bool:
        """Whether there may be a seat for somebody; cheap, as it is asked in every step."""
        if not len(self.waiting):
            return False
        return len(self.running) < self.config.max_num_seqs or any(r.rank < self.waiting.highest for r in self.running)

    def _admit_one(
        self, request: ActiveRequest, rank: int, max_tokens: int, now: float, *, passing: bool = False
    ) -> bool:
        tokens_before = sum(r.remaining for r in self.running if r.rank >= rank)
        if tokens_before >= max_tokens or not self._make_way(request, passing):
            return False
        if not request.admitted:
            self._charge(request, request.prompt_tokens)
        if request in self.parked:
            self.parked.remove(request)
        self.waiting.admit(request, rank, now)
        request.last_turn = now
        request.blocks += self.pool.take(blocks_for(len(request.tokens)) - len(request.blocks)) or []
        self.running.append(request)
        return True

    def _make_way(self, request: ActiveRequest, passing: bool) -> bool:
        """Find a seat and blocks (`passing`: not the free ones). False, and nothing has changed, if that cannot be."""
        below = sorted((r for r in self.running if r.rank < request.priority), key=_standing, reverse=True)
        parked = [r for r in self.parked if r is not request]
        no_seat = passing or len(self.running) >= self.config.max_num_seqs
        # One block more than the prompt's, unless all others would give way, so that it is not preempted at its first
        # token.
        spare = 1 if len(below) < len(self.running) else 0
        missing = blocks_for(len(request.tokens)) + spare - len(request.blocks)
        free = missing + (self.pool.free if passing else 0)  # so many must be free in the end
        if (no_seat and not below) or free > self.pool.free + _blocks(below) + _blocks(parked):
            return False
        if no_seat:
            self._park(lowest := below.pop())
            parked.append(lowest)
        parked.sort(key=_standing, reverse=True)
        while free > self.pool.free:
            if parked:
                self._drop(parked.pop())
            else:
                self._preempt(below.pop())
        return True

    def _grow(self, request: ActiveRequest) -> None:
        """Make room for a request's next token; it may itself be preempted for that, or may have been before."""
        while len(request.blocks) < blocks_for(len(request.tokens)) and request in self.running:
            if taken := self.pool.take(1):
                request.blocks += taken
            elif self.parked:
                self._drop(min(self.parked, key=_standing))
            else:
                self._preempt(min(self.running, key=_standing))

    def _park(self, request: ActiveRequest) -> None:
        self.running.remove(request)
        self.waiting.add(request)
        self.parked.append(request)

    def _drop(self, request: ActiveRequest) -> None:
        """Take the blocks of one that is parked."""
        self.parked.remove(request)
        self.pool.give_back(request.blocks)
        request.computed, request.drops = 0, request.drops + 1
        self.preemptions += 1

    def _preempt(self, request: ActiveRequest) -> None:
        self._park(request)
        self._drop(request)

    def _charge(self, request: ActiveRequest, tokens: int) -> None:
        self.counters[request.priority].charge(request.share, tokens, request.request.weight)


def _standing(request: ActiveRequest) -> tuple[int, float]:
    """Who gives way: the lowest; of equals, the one that came last."""
    return request.rank, -request.arrived


def _blocks(requests: Iterable[ActiveRequest]) -> int:
    return sum(len(r.blocks) for r in requests)
