"""A server that goes away, is mute or forgets: one clear error in bounded time, and all is well when it is back."""

from __future__ import annotations

import asyncio
import math
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from coserve.errors import Unavailable
from coserve.service.limits import Draw, Limit, open_store
from tests.service.limits.stores import opened, with_store
from tests.service.servers import free_port, psql

LIMIT = Limit("tokens", 100, math.inf)
NEVER = 20  # seconds after which a call counts as hanging


async def is_away(store):
    """Every kind of call says so."""
    calls = [
        store.reserve([Draw(LIMIT, 1)]),
        store.settle([Draw(LIMIT, 1)]),
        store.levels([LIMIT]),
        store.preset(LIMIT, 1),
        store.acquire("slots", 1, "a", 60),
        store.renew("slots", "a", 60),
        store.release("slots", "a"),
    ]
    answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), NEVER)
    for answer in answers:
        assert isinstance(answer, Unavailable), answer
        assert "which keeps the limits" in answer.message and "\n" not in answer.message
    return True


async def works_again(store):
    """Soon, if not at once: a call may wait behind one that is still lost."""
    async with asyncio.timeout(NEVER):
        while True:
            with suppress(Unavailable):
                assert isinstance(await store.reserve([Draw(LIMIT, 1)]), list)
                return


class Proxy:
    """Between a store and its server. `mood`: "pass"; "mute": no answer comes back; "cut": the next one does
    not, and the connection ends."""

    def __init__(self, url):
        place = urlsplit(url)
        self.server, self.port, self.mood = (place.hostname, place.port), free_port(), "pass"
        self.url = url.replace(f":{place.port}", f":{self.port}")

    @asynccontextmanager
    async def running(self):
        listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        yield self
        listener.close()

    async def _connected(self, reader, writer):
        with suppress(OSError, asyncio.CancelledError):
            there_reader, there_writer = await asyncio.open_connection(*self.server)
            asking = asyncio.create_task(self._copy(reader, there_writer))
            await self._answer(there_reader, writer)
            asking.cancel()
            for one in (writer, there_writer):
                one.close()

    async def _answer(self, reader, writer):
        while data := await reader.read(65536):
            if self.mood == "cut":
                self.mood = "pass"
                return
            if self.mood == "pass":
                writer.write(data)

    @staticmethod
    async def _copy(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)


@pytest.fixture
def impatient(monkeypatch):
    for module in ("shared", "redis", "postgres"):
        monkeypatch.setattr(f"coserve.service.limits.{module}.PATIENCE", 1)


def test_a_server_that_stops_and_starts_again(server):
    process, url = server

    async def promise(store):
        await asyncio.gather(*(store.reserve([Draw(LIMIT, 1)]) for _ in range(20)))
        process.stop()
        assert await is_away(store)
        await asyncio.to_thread(process.start)
        levels = await asyncio.gather(*(store.levels([LIMIT]) for _ in range(20)))
        assert all(level.remaining in (80, 100) for [level] in levels)
        assert isinstance(await store.reserve([Draw(LIMIT, 1)]), list)

    with_store(url, promise)


def test_a_server_that_stops_under_load(server):
    process, url = server

    async def promise(store):
        refused, back = asyncio.Event(), asyncio.Event()

        async def client(i):
            while not back.is_set():
                try:
                    await asyncio.wait_for(store.reserve([Draw(Limit(f"key-{i}", 1e6, 60), 1)]), NEVER)
                except Unavailable:
                    refused.set()
                await asyncio.sleep(0.01)

        clients = asyncio.gather(*(client(i) for i in range(30)))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(process.stop)
        await asyncio.wait_for(refused.wait(), NEVER)
        await asyncio.to_thread(process.start)
        back.set()
        await clients
        assert isinstance(await store.reserve([Draw(LIMIT, 1)]), list)

    with_store(url, promise)


def test_a_mute_server_is_not_waited_for(server, impatient):
    async def run():
        async with Proxy(server[1]).running() as proxy, opened(proxy.url) as store:
            await store.reserve([Draw(LIMIT, 1)])
            proxy.mood = "mute"
            assert await is_away(store)
            assert await is_away(store)
            proxy.mood = "pass"
            await works_again(store)

    asyncio.run(run())


def test_a_server_that_is_mute_from_the_start(server, impatient):
    async def run():
        async with Proxy(server[1]).running() as proxy:
            proxy.mood = "mute"
            store = open_store(proxy.url)
            with pytest.raises(Unavailable, match="which keeps the limits"):
                await asyncio.wait_for(store.open(), NEVER)
            proxy.mood = "pass"
            await store.open()
            assert isinstance(await store.reserve([Draw(LIMIT, 1)]), list)
            await store.close()

    asyncio.run(run())


def test_a_call_whose_answer_is_lost_is_not_made_twice(server):
    async def run():
        async with Proxy(server[1]).running() as proxy, opened(proxy.url) as store, opened(server[1]) as direct:
            await store.reserve([Draw(LIMIT, 1)])
            proxy.mood = "cut"
            with pytest.raises(Unavailable):
                await store.reserve([Draw(LIMIT, 10)])
            assert (await direct.levels([LIMIT]))[0].remaining == 100 - 1 - 10

    asyncio.run(run())


def test_a_server_that_is_not_there_at_the_start(server):
    process, url = server
    process.stop()

    async def run():
        store = open_store(url)
        with pytest.raises(Unavailable, match="which keeps the limits"):
            await store.open()
        await asyncio.to_thread(process.start)
        await store.open()
        assert isinstance(await store.reserve([Draw(LIMIT, 1)]), list)
        await store.close()

    asyncio.run(run())


def test_redis_forgets_what_is_full_or_over(redis_url):
    import redis

    async def promise(store):
        await store.reserve([Draw(Limit("quick", 10, 0.2), 10), Draw(LIMIT, 1)])
        await store.acquire("slots", 1, "killed", 0.2)
        await store.settle([Draw(LIMIT, -1)])
        await asyncio.sleep(0.3)
        with redis.Redis.from_url(redis_url) as client:
            assert client.keys() == []

    with_store(redis_url, promise)


def test_postgresql_forgets_what_is_full_or_over(postgres_url, monkeypatch):
    monkeypatch.setattr("coserve.service.limits.postgres.SWEEP_SECONDS", 0.1)

    async def promise(store):
        await store.reserve([Draw(Limit("quick", 10, 0.2), 10), Draw(LIMIT, 1)])
        await store.acquire("slots", 1, "killed", 0.2)
        await asyncio.sleep(0.6)
        assert psql(postgres_url, "SELECT key FROM limit_buckets") == "tokens"
        assert psql(postgres_url, "SELECT key FROM limit_leases") == ""

    with_store(postgres_url, promise)


def test_many_processes_may_make_the_tables_at_once(postgres_url):
    async def run():
        stores = [open_store(postgres_url) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
        await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(run())
