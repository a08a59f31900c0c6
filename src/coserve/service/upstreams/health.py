"""Looking after upstreams that nobody can tell anything of: those that are ill, and those that were never asked."""

from __future__ import annotations

import asyncio
from random import Random

from coserve.service.errors import log_unexpected
from coserve.service.upstreams.failures import Failure
from coserve.service.upstreams.upstream import Upstream

PATIENCE = 5.0
"""Seconds for an answer."""


async def watch(upstream: Upstream, random: Random) -> None:
    """For ever: one look now, then one an interval, give or take a fifth, so that many servers do not look at once."""
    interval = upstream.config.health_interval
    await asyncio.sleep(random.uniform(0, 0.1) * interval)
    while True:
        if upstream.breaker.state != "closed" or not upstream.used:
            try:
                await look(upstream)
            except Exception as error:  # whatever it is: without looks an upstream that is ill stays away for ever
                log_unexpected(error)
        await asyncio.sleep(interval * random.uniform(0.8, 1.2))


async def look(upstream: Upstream) -> None:
    """A sign of life lets the next request through as a probe; none keeps the breaker open."""
    try:
        async with asyncio.timeout(PATIENCE):
            await upstream.client.alive()
    except TimeoutError:
        upstream.not_alive(f"its health check took more than {PATIENCE:.3g} s")
    except Failure as failure:
        upstream.not_alive(failure.why)
    else:
        upstream.breaker.probe_now()
