"""Serving under load: how long a token and a first token take when many requests share a replica.

Continuous batching: every step decodes a token for all running sequences, and prompts share those steps. So a
request's tokens wait for the prompts of all others that come meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coserve.planner.replica import Replica, Seconds


@dataclass(frozen=True)
class Requests:
    """What is asked, on average."""

    prompt: float  # tokens
    output: float  # tokens


@dataclass(frozen=True)
class Serving:
    """One replica under load; times in seconds, rates a second."""

    running: float  # sequences that are decoded together
    tpot: float  # between two tokens of a request, on average
    ttft: float  # to the first token, on average
    step: Seconds  # a decode step without prompts
    prompt: Seconds  # a prompt's own pass
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
    context = requests.prompt + requests.output / 2
    running = min(concurrency, max(1, replica.slots(context)))
    step = replica.decode(running, context)
    own, share = replica.prompt(requests.prompt), replica.prompt_share(step, requests.prompt)
    tpot = step.total + share * (running - 1) / requests.output
    cycle = own.total + requests.output * tpot
    busy = min(1.0, running * share / cycle)
    start = (running - 1) * own.total / (2 * per_user) if per_user else 0.0
    ttft = replica.first_token + own.total + start
    rate = running / (cycle + ttft - own.total)
    return Serving(running, tpot, ttft + (concurrency - running) / rate, step, own, busy, rate)


@dataclass(frozen=True)
class Limits:
    """What 99 of 100 requests must get, in seconds."""

    ttft: float = math.inf
    tpot: float = math.inf


def crowded(running: float) -> float:
    """Sequences that run together in the worst hundredth of the time, where requests come as they like (Poisson)."""
    return running + 2.33 * math.sqrt(running)


def best_throughput(replica: Replica, requests: Requests, limits: Limits = Limits()) -> Serving | None:
    """The load at which a replica gives most tokens a second within `limits`; None where it never can."""
    slots = replica.slots(requests.prompt + requests.output / 2)
    found: Serving | None = None
    users = 1
    while users <= min(slots, MOST_RUNNING):
        worst = closed_loop(replica, requests, min(slots, crowded(users)) if limits != Limits() else users)
        if worst.tpot > limits.tpot or worst.ttft > limits.ttft:
            break
        now = closed_loop(replica, requests, users)
        if found is None or now.rate > found.rate:
            found = now
        users = math.ceil(users * 1.25)
    return found


MOST_RUNNING = 2048
"""Sequences that a replica runs at once at most; engines' defaults lie between 256 and 2048."""
