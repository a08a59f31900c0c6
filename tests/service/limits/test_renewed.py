"""Leases that are renewed: they outlast any work, and a kill by their seconds only."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from coserve.errors import Unavailable
from coserve.service.limits import RenewedStore, open_store
from coserve.service.limits.memory import MemoryStore
from tests.service.limits.stores import Clock, opened

SECONDS = 0.6  # of a lease
LONG = 3 * SECONDS


@asynccontextmanager
async def renewed(url):
    store = RenewedStore(open_store(url), look=0.05)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class Away(MemoryStore):
    """A store whose server comes and goes."""

    away = False

    async def acquire(self, *args):
        if self.away:
            raise Unavailable("it is away.")
        return await super().acquire(*args)


def test_a_long_request_keeps_its_place(url):
    async def run():
        async with renewed(url) as store:
            assert await store.acquire("slots", 1, "long", SECONDS)
            await asyncio.sleep(LONG)
            assert not await store.acquire("slots", 1, "another", SECONDS)
            await store.release("slots", "long")
            assert await store.acquire("slots", 1, "another", SECONDS)

    asyncio.run(run())


def test_a_place_that_was_released_is_not_renewed(url):
    async def run():
        async with renewed(url) as store:
            for turn in range(20):
                assert await store.acquire("slots", 1, f"{turn}", SECONDS)
                await asyncio.sleep(0.02)
                await store.release("slots", f"{turn}")
            assert not await store.renew("slots", "19", SECONDS)

    asyncio.run(run())


def test_a_killed_servers_places_end_soon(server):
    async def run():
        _, url = server
        async with opened(url) as other:
            async with renewed(url) as store:
                assert await store.acquire("slots", 1, "killed", SECONDS)
                await asyncio.sleep(LONG)
            assert not await other.acquire("slots", 1, "next", SECONDS)
            await asyncio.sleep(SECONDS + 0.1)
            assert await other.acquire("slots", 1, "next", SECONDS)

    asyncio.run(run())


def test_a_server_that_lost_all_is_told_again(server):
    """Whatever the capacity: what runs counts."""

    async def run():
        process, url = server
        async with renewed(url) as store:
            assert await store.acquire("slots", 2, "one", 60)
            assert await store.acquire("slots", 2, "two", 60)
            for held in store._held.values():
                held.since -= 30  # they are due
            process.stop()
            await asyncio.to_thread(process.start)
            async with asyncio.timeout(20), opened(url) as other:
                while not await other.renew("slots", "one", 60) or not await other.renew("slots", "two", 60):
                    await asyncio.sleep(0.05)
                assert not await other.acquire("slots", 2, "three", 60)

    asyncio.run(run())


@pytest.mark.parametrize("away", [30, 300])
def test_a_store_that_was_away_is_told_when_it_is_back(away, caplog):
    async def run():
        clock = Clock()
        backend = Away(clock)
        store = RenewedStore(backend, look=0.001, clock=clock)
        await store.open()
        assert await store.acquire("slots", 1, "long", 60)
        backend.away = True
        clock.now += away
        await asyncio.sleep(0.02)
        backend.away = False
        await asyncio.sleep(0.02)
        clock.now += 45
        assert not await store.acquire("slots", 1, "another", 60)
        await store.close()

    asyncio.run(run())
    assert [record.message for record in caplog.records] == [
        "places that requests hold cannot be renewed now (it is away.)"
    ]
