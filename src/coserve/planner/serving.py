"""Serving under load: how long a token and a first token take when many requests share a replica.

Continuous batching: every step decodes a token for all running sequences, and prompts share those steps. So a
request's tokens wait for the prompts of all others that come meanwhile; that, not bandwidth alone, sets the pace of a
busy server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from coserve.planner.replica import Replica, Seconds

MOST_RUNNING = 2048
"""Sequences that a replica runs at once at most; engines' defaults lie between 256 and 2048."""
CHUNK = 2048
"""Tokens of a prompt that share a step with decoding at most (chunked prefill)."""
AHEAD = 1
"""Steps that engines launch before the running one is done: a prompt joins the next one only."""
DRAFT_COST = 0.05
"""Of a decode step, for each token that is drafted: EAGLE-like heads are a layer of some tens."""


@dataclass(frozen=True)
class Requests:
    """What is asked, on average, and what an engine may save of it."""

    prompt: float  # tokens
    output: float  # tokens
    cached: float = 0.0  # share of the prompt whose keys and values are there already (prefix caching)
    drafted: int = 0  # tokens that speculative decoding guesses a step; 0 = off
    acceptance: float = 0.0  # share of guesses that hold, each given that those before it held
    elsewhere: bool = False  # prompts are computed by replicas that do nothing else (disaggregated)

    @property
    def computed(self) -> float:
        """Tokens of the prompt that have to be computed."""
        return self.prompt * (1 - self.cached)

    @property
    def context(self) -> float:
        """Tokens of a sequence in the middle of its output."""
        return self.prompt + self.output / 2

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens of a decode step (Leviathan et al., 2023)."""
        a = self.acceptance
        return (1 - a ** (self.drafted + 1)) / (1 - a) if a < 1 else 1.0 + self.drafted


@dataclass(frozen=True)
class Serving:
    """One replica under load; times in seconds, rates a second."""

    running: float  # sequences that are decoded together
    tpot: float  # between two tokens of a request, on average
    ttft: float  # to the first token, on average
    step: Seconds  # a decode step without prompts
    prompt: Seconds  # a prompt's own pass
    share: float  # what a prompt adds to the steps that it shares
    busy: float  # share of the time that prompts take
    rate: float  # requests

    @property
    def interactivity(self) -> float:
        """Tokens a second that one user sees."""
        return 1 / self.tpot


def closed_loop(replica: Replica, requests: Requests, concurrency: float, per_user: float | None = None) -> Serving:
    """`concurrency` users, each with one request at a time, who ask again at once.

    `per_user`: requests of each user, where all start together, as benchmarks do: the first ones then wait for each
    other's prompts, and the mean shows it. None: they have run for ever.
    """
    running = min(concurrency, max(1, replica.slots(requests.context)))
    others = max(0.0, running - 1)
    step = replica.decode(running, requests.context, 1 + requests.drafted)
    seconds = step.total * (1 + DRAFT_COST * requests.drafted)
    before = requests.prompt - requests.computed
    own = replica.prompt(requests.computed, before)
    share = 0.0 if requests.elsewhere else replica.prompt_share(step, requests.computed, before)
    tpot = seconds / requests.tokens_per_step + share * others / requests.output
    cycle = own.total + requests.output * tpot
    start = others * own.total / (2 * per_user) if per_user else 0.0
    first = replica.first_token + (0.5 + AHEAD) * step.total + own.total + start
    rate = running / (cycle + first - own.total)
    busy = min(1.0, rate * share)
    return Serving(running, tpot, first + (concurrency - running) / rate, step, own, share, busy, rate)


def open_loop(replica: Replica, requests: Requests, rate: float) -> Serving | None:
    """Requests that come as they like, `rate` a second (Poisson); None where the replica cannot keep up.

    As many run as Little's law says; a prompt waits for those before it (M/M/1: prompts differ in length).
    """
    most = min(replica.slots(requests.context), MOST_RUNNING)
    if most < 1 or closed_loop(replica, requests, most).rate < rate:
        return None
    low, high = 0.0, float(most)
    while high - low > 0.005 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if closed_loop(replica, requests, middle).rate < rate else (low, middle)
    found = closed_loop(replica, requests, high)
    wait = found.share * found.busy / (1 - found.busy) if found.busy < 1 else math.inf
    return replace(found, ttft=found.ttft + wait, rate=min(rate, found.rate))


def crowded(running: float) -> float:
    """Sequences that run together in the worst hundredth of the time, where requests come as they like (Poisson)."""
    return running + 2.33 * math.sqrt(running)


@dataclass(frozen=True)
class Tail:
    """What 99 of 100 get, in seconds."""

    ttft: float
    tpot: float  # a request's mean gap
    itl: float  # a single gap


def tail(replica: Replica, requests: Requests, serving: Serving) -> Tail:
    """The 99th percentiles beside the means of `open_loop`."""
    slots = max(1, replica.slots(requests.context))
    worst = closed_loop(replica, requests, min(slots, crowded(serving.running)))
    idle = max(1e-9, 1 - serving.busy)
    queue = serving.share / idle * max(0.0, math.log(100 * serving.busy)) if serving.busy else 0.0
    chunks = max(1.0, requests.computed / CHUNK)
    with_prompt = serving.rate * chunks * worst.step.total  # share of the steps that carry a chunk
    itl = worst.step.total + (serving.share / chunks if with_prompt > 0.01 else 0.0)
    first = replica.first_token + (1 + AHEAD) * worst.step.total + serving.prompt.total
    return Tail(first + queue, worst.tpot, itl)


@dataclass(frozen=True)
class Limits:
    """What 99 of 100 requests must get at most, in seconds."""

    ttft: float = math.inf
    tpot: float = math.inf


NO_LIMITS = Limits()


def best_throughput(replica: Replica, requests: Requests, limits: Limits = NO_LIMITS) -> Serving | None:
    """The load at which a replica answers most requests a second within `limits`; None where it never can.

    More users never make it quicker for one of them, so the greatest number within the limits is searched by halving.
    """
    most = min(replica.slots(requests.context), MOST_RUNNING)
    if most < 1 or not _within(replica, requests, closed_loop(replica, requests, 1), limits):
        return None
    low, high = 1.0, float(most)
    best = closed_loop(replica, requests, high)
    if _within(replica, requests, best, limits):
        return best
    while high - low > max(0.5, 0.02 * high):
        middle = (low + high) / 2
        now = closed_loop(replica, requests, middle)
        low, high = (middle, high) if _within(replica, requests, now, limits) else (low, middle)
    return closed_loop(replica, requests, low)


def _within(replica: Replica, requests: Requests, serving: Serving, limits: Limits) -> bool:
    if limits == NO_LIMITS:
        return True
    worst = tail(replica, requests, serving)
    return worst.tpot <= limits.tpot and worst.ttft <= limits.ttft
