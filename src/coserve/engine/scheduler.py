"""Which tokens go into the next step: every running request's, then prompts, oldest first, within the limits."""

from __future__ import annotations

from collections import deque

from coserve.engine.active import ActiveRequest
from coserve.engine.batch import Segment
from coserve.engine.blocks import BlockPool, blocks_for
from coserve.engine.config import EngineConfig


class Scheduler:
    """Owns the waiting and running requests and their blocks.

    A request is admitted when the blocks of its whole prompt are free. Blocks for generated tokens are taken one by
    one; when none is left, the request that came last gives its blocks back and is computed again later.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool):
        self.config, self.pool = config, pool
        self.waiting: deque[ActiveRequest] = deque()
        self.running: list[ActiveRequest] = []  # in the order of admission
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def backlog(self) -> bool:
        """Whether prompts wait to be computed: then whatever is done besides delays all of them."""
        return bool(self.waiting) or any(not r.decoding for r in self.running)

    def add(self, request: ActiveRequest) -> None:
        self.waiting.append(request)

    def decoding(self) -> list[ActiveRequest]:
        """The requests that get a token from every step."""
        return [r for r in self.running if r.decoding]

    def plan(self, max_tokens: int) -> list[tuple[ActiveRequest, Segment]]:
        """The next step's inference segments, those of one adapter side by side. Takes the blocks they need.

        `max_tokens`: of decoding requests and chunks of prompts together; requests that decode all go along.
        """
        chosen: list[tuple[ActiveRequest, Segment]] = []
        budget = max_tokens
        for request in self.decoding():
            if request in self.running and self._grow(request, len(request.tokens)):
                chosen.append((request, self._segment(request, 1)))
        # A later request's decode may have been preempted for an earlier one's block after it was chosen.
        chosen = [(r, s) for r, s in chosen if r in self.running]
        budget -= len(chosen)
        for request in [r for r in self.running if not r.decoding]:
            if budget <= 0:
                break
            length = min(request.remaining, budget)
            chosen.append((request, self._segment(request, length)))
            budget -= length
        while budget > 0 and self._admit_next():
            request = self.running[-1]
            length = min(request.remaining, budget)
            chosen.append((request, self._segment(request, length)))
            budget -= length
        chosen.sort(key=lambda pair: (pair[1].adapter is not None, pair[0].request.model))
        return chosen

    def release(self, request: ActiveRequest) -> None:
        """Forget a request that has ended, wherever it stands."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self.pool.give_back(request.blocks)

    def _segment(self, request: ActiveRequest, length: int) -> Segment:
        end = request.computed + length
        return Segment(
            "decode" if request.decoding else "prefill",
            request.tokens[request.computed : end],
            request.computed,
            request.blocks,
            request.adapter,
            sample=end == len(request.tokens),
        )

    def _admit_next(self) -> bool:
        if not self.waiting or len(self.running) >= self.config.max_num_seqs:
            return False
        request = self.waiting[0]
        # One block more than the prompt's, unless it is alone, so that it is not preempted at its first token.
        spare = 1 if self.running else 0
        if self.pool.free < blocks_for(len(request.tokens)) + spare:
            return False
        self.waiting.popleft()
        self.running.append(request)
        request.blocks = self.pool.take(blocks_for(len(request.tokens))) or []
        return True

    def _grow(self, request: ActiveRequest, tokens: int) -> bool:
        """Make room for `tokens` tokens of a request; False if it was itself preempted for it."""
        while len(request.blocks) < blocks_for(tokens):
            taken = self.pool.take(1)
            if taken:
                request.blocks += taken
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: ActiveRequest) -> None:
        self.running.remove(request)
        self.pool.give_back(request.blocks)
        request.computed = 0
        self.waiting.appendleft(request)
        self.preemptions += 1
