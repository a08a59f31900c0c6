"""Load over HTTP at little cost of its own: bytes on kept-alive connections, and when they came."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

_TIMEOUT = 60.0  # seconds for one reply


@dataclass(frozen=True)
class Target:
    """Where requests go. `body` is the JSON of each."""

    port: int
    key: str
    body: bytes

    def request(self) -> bytes:
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (self.key.encode(), len(self.body), self.body)
        )


@dataclass
class Figures:
    ttft: list[float] = field(default_factory=list)  # seconds
    replies: int = 0
    seconds: float = 0.0


class LoadError(Exception):
    """A reply that was not 200: the first of its bytes."""


async def closed_loop(target: Target, concurrency: int, seconds: float, warm_up: float, pause: float = 0.0) -> Figures:
    """Each of `concurrency` connections asks again when it is answered, after a pause of up to `pause` seconds: without
    one they would march in step, and wait for each other. Raises `LoadError`.
    """
    figures = Figures()
    start = time.perf_counter() + warm_up
    end = start + seconds
    await asyncio.gather(*(_connection(target, start, end, pause, figures) for _ in range(concurrency)))
    figures.seconds = seconds
    return figures


async def _connection(target: Target, start: float, end: float, pause: float, figures: Figures) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    request = target.request()
    try:
        while (began := time.perf_counter()) < end:
            writer.write(request)
            first = await asyncio.wait_for(_reply(reader), _TIMEOUT)
            if start <= began and time.perf_counter() < end:
                figures.replies += 1
                figures.ttft.append(first - began)
            if pause:
                await asyncio.sleep(random.uniform(0, pause))
    finally:
        writer.close()


async def _reply(reader: asyncio.StreamReader) -> float:
    """Read one reply to its end; when the first byte of its body came."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise LoadError((head + await reader.read(500)).decode(errors="replace"))
    if b"transfer-encoding: chunked" not in head:
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        body = await reader.readexactly(1)
        first = time.perf_counter()
        await reader.readexactly(length - len(body))
        return first
    first = 0.0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
        first = first or time.perf_counter()
    await reader.readexactly(2)
    return first
