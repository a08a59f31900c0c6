"""A real HTTP server on loopback that misbehaves as a test says, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = ("Hel", "lo, ", "wor", "ld!")
USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16, "prompt_tokens_details": {"cached_tokens": 4}}
Behave = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request, and the connection to answer it on. `gone` is set when the other side has closed that."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def head(self, status: int, *headers: str) -> None:
        self.write("\r\n".join([f"HTTP/1.1 {status} Whatever", *headers, "", ""]).encode())

    def json(self, status: int, value: object, *headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.head(status, "content-type: application/json", f"content-length: {len(body)}", *headers)
        self.write(body)

    def events(self) -> None:
        self.head(200, "content-type: text/event-stream", "transfer-encoding: chunked")

    def raw_event(self, data: bytes) -> None:
        self.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, value: object) -> None:
        self.raw_event(b"data: " + json.dumps(value).encode() + b"\n\n")

    def end(self, *, done: bool = True) -> None:
        if done:
            self.raw_event(b"data: [DONE]\n\n")
        self.write(b"0\r\n\r\n")

    def reply(self, content: str, **more: Any) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": content}} if self.chat else {"text": content}
        kind = "chat.completion" if self.chat else "text_completion"
        head = {"id": "up-1", "object": kind, "created": 5, "model": self.body["model"]}
        return {**head, "choices": [choice], **more}

    def chunk(self, content: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {} if content is None else {"content": content}} if self.chat else {"text": content or ""}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {"id": "up-1", "object": kind, "created": 5, "model": self.body["model"]}
        return {**head, "choices": [choice], **more}


async def answer(exchange: Exchange) -> None:
    """As it should be."""
    if exchange.method == "GET":
        return exchange.json(200, {"object": "list", "data": []})
    if not exchange.body.get("stream"):
        return exchange.json(200, exchange.reply("".join(WORDS), usage=USAGE))
    exchange.events()
    if exchange.chat:
        exchange.event(exchange.chunk(""))
    for word in WORDS:
        exchange.event(exchange.chunk(word))
    exchange.event(exchange.chunk(None, "stop"))
    if (exchange.body.get("stream_options") or {}).get("include_usage"):
        exchange.event({**exchange.chunk(None), "choices": [], "usage": USAGE})
    exchange.end()


class FaultyServer:
    """`script` holds how to treat the next requests (health checks are always answered well); then `default` holds."""

    def __init__(self) -> None:
        self.default: Behave = answer
        self.healthy: Behave = answer
        self.script: list[Behave] = []
        self.exchanges: list[Exchange] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.method == "POST"]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while exchange := await self._read(reader, writer):
                self.exchanges.append(exchange)
                if exchange.method == "GET":
                    behave = self.healthy
                else:
                    behave = self.script.pop(0) if self.script else self.default
                behaving = asyncio.ensure_future(behave(exchange))
                hearing = asyncio.ensure_future(_until_closed(reader))
                await asyncio.wait({behaving, hearing}, return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    exchange.gone.set()
                    behaving.cancel()
                    return
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)
                await writer.drain()
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Exchange(method, path, headers, json.loads(body) if body else {}, writer)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Nothing comes while a request is answered, but the end."""
    while not reader.at_eof():
        await asyncio.sleep(0.005)


def status(code: int, *headers: str, message: str = "trouble") -> Behave:
    async def behave(exchange: Exchange) -> None:
        exchange.json(code, {"error": {"message": message, "type": "x", "param": "temperature", "code": "c"}}, *headers)

    return behave


async def hang(exchange: Exchange) -> None:
    await asyncio.sleep(60)


async def hang_after_role(exchange: Exchange) -> None:
    exchange.events()
    exchange.event(exchange.chunk(""))
    await asyncio.sleep(60)


async def slow_head(exchange: Exchange) -> None:
    exchange.write(b"HTTP/1.1 200 OK\r\ncontent-")
    await asyncio.sleep(60)


async def close_at_once(exchange: Exchange) -> None:
    exchange.writer.close()


async def not_http(exchange: Exchange) -> None:
    exchange.write(b"SSH-2.0-OpenSSH_9\r\n\r\n")
    exchange.writer.close()


async def no_json(exchange: Exchange) -> None:
    if exchange.body.get("stream"):
        exchange.events()
        exchange.raw_event(b'data: {"choices": [{"delta": {"content": "x"}}\n\n')
        return exchange.end()
    exchange.json(200, b'{"choices": [')


async def half_a_body(exchange: Exchange) -> None:
    exchange.head(200, "content-type: application/json", "content-length: 1000")
    exchange.write(b'{"id": "x"')
    exchange.writer.close()


async def no_usage(exchange: Exchange) -> None:
    if not exchange.body.get("stream"):
        return exchange.json(200, exchange.reply("".join(WORDS)))
    exchange.events()
    for word in WORDS:
        exchange.event(exchange.chunk(word))
    exchange.event(exchange.chunk(None, "stop"))
    exchange.end()


async def usage_in_each_chunk(exchange: Exchange) -> None:
    """As some servers tell it, or are asked to; slower than a first token may be."""
    exchange.events()
    for count, word in enumerate(WORDS, 1):
        usage = {"prompt_tokens": 9, "completion_tokens": 2 * count}
        exchange.event(exchange.chunk(word, "stop" if count == len(WORDS) else None, usage=usage))
        await asyncio.sleep(0.15)
    exchange.end()


def breaking_off(words: int, how: str = "close") -> Behave:
    """A stream that ends after some words: "close", "end" (without a finish), "error", "hang" or "garbage"."""

    async def behave(exchange: Exchange) -> None:
        exchange.events()
        for word in WORDS[:words]:
            exchange.event(exchange.chunk(word))
            await asyncio.sleep(0.01)
        if how == "error":
            exchange.event({"error": {"message": "out of memory, key sk-of-the-upstream", "type": "server_error"}})
        elif how == "garbage":
            exchange.raw_event(b"data: <html>\n\n")
        elif how == "hang":
            await asyncio.sleep(60)
        elif how == "end":
            return exchange.end(done=False)
        exchange.writer.close()

    return behave


async def endless(exchange: Exchange) -> None:
    exchange.events()
    while True:
        exchange.event(exchange.chunk("word "))
        await asyncio.sleep(0.01)


def redirect(to: str) -> Behave:
    async def behave(exchange: Exchange) -> None:
        exchange.head(307, f"location: {to}", "content-length: 0")

    return behave


def refusing_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
