"""What an HTTP client costs a server that passes requests on: aiohttp against httpx, on loopback.

    python benchmarks/upstream_clients.py [--quick]

The other end answers from one buffer, so that nearly all of the time is the client's.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import socket
import time
from collections.abc import Awaitable, Callable

import aiohttp
import httpx
import uvloop

CONCURRENT = 16
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
BODY = b'{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"content":"Hello"}}]}'
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
HEADERS = {"content-type": "application/json", "authorization": "Bearer key"}
Ask = Callable[[], Awaitable[bytes]]


class Null(asyncio.Protocol):
    """Answers each request the same; a request here always comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(REQUEST):
            self._transport.write(REPLY)  # type: ignore[attr-defined]


def serve(listener: socket.socket) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Null, sock=listener)
        await server.serve_forever()

    uvloop.run(main())


async def with_aiohttp(url: str, requests: int) -> str:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session:

        async def ask() -> bytes:
            async with session.post(url, data=REQUEST, headers=HEADERS, allow_redirects=False) as reply:
                return await reply.read()

        return await measure("aiohttp", ask, requests)


async def with_httpx(url: str, requests: int) -> str:
    async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=CONCURRENT)) as client:

        async def ask() -> bytes:
            return (await client.post(url, content=REQUEST, headers=HEADERS)).content

        return await measure("httpx", ask, requests)


async def measure(name: str, ask: Ask, requests: int) -> str:
    left = iter(range(requests))

    async def work() -> None:
        for _ in left:
            assert await ask() == BODY

    await ask()
    cpu, began = _cpu(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENT)))
    seconds = time.perf_counter() - began
    return f"{name:8} {requests / seconds:7.0f} requests/s  {1e6 * (_cpu() - cpu) / requests:6.0f} us of processor each"


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    requests = 500 if parser.parse_args().quick else 5000
    listener = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.Process(target=serve, args=(listener,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    for run in (with_aiohttp, with_httpx):
        print(uvloop.run(run(url, requests)), flush=True)
    server.terminate()


if __name__ == "__main__":
    main()
