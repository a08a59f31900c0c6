"""Looking after upstreams, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from random import Random
from types import SimpleNamespace

from coserve.service.tasks import cancel
from coserve.service.upstreams.breaker import Breaker
from coserve.service.upstreams.config import Breaking
from coserve.service.upstreams.health import watch


def test_a_look_that_fails_in_a_way_nobody_thought_of_is_not_the_last_one(caplog):
    looks = 0

    async def alive():
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("who would have thought")

    async def run():
        upstream = SimpleNamespace(
            breaker=Breaker(Breaking()),
            config=SimpleNamespace(health_interval=0.01),
            client=SimpleNamespace(alive=alive),
            used=False,
        )
        watching = asyncio.create_task(watch(upstream, Random(1)))
        async with asyncio.timeout(10):
            while looks < 3:
                await asyncio.sleep(0.005)
        await cancel(watching)

    asyncio.run(run())
    assert "unexpected RuntimeError" in caplog.text
