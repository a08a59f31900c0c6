"""The application spoken to directly: what was sent, and when the client left, is then known exactly."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from coserve.service import Settings
from coserve.service.app import create_app
from tests.service.fake_engine import FakeEngine
from tests.service.fake_training import TRAINING


@asynccontextmanager
async def application(home: Path, engine: FakeEngine, **settings: Any) -> AsyncIterator[Starlette]:
    app = create_app(engine, Settings(home=home, **settings), training=TRAINING)
    async with app.state.service:
        yield app


@dataclass
class Exchange:
    """One request, and what came of it until the client left."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pieces(self) -> int:
        """Tokens that were sent: the fake engine's are a letter each."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return len(re.findall(rb'"content":"."', self.body)) + len(re.findall(rb'"text":"."', self.body))
        if self.status != 200:
            return 0
        return json.loads(self.body)["usage"]["completion_tokens"] if self.body else 0


async def post(
    app: Starlette, path: str, key: str, body: dict[str, Any], *, leave_after: int | None = None
) -> Exchange:
    """`leave_after`: pieces of the body after which the client is gone; what is sent later does not arrive."""
    exchange = Exchange()
    text = json.dumps(body).encode()
    first, gone, pieces = True, asyncio.Event(), 0

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": text, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal pieces
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            exchange.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if not gone.is_set():
            exchange.body += message.get("body", b"")
        pieces += 1
        if leave_after is not None and pieces >= leave_after:
            gone.set()
            await asyncio.sleep(0)  # the server's watcher hears of it

    if leave_after == 0:
        gone.set()
    headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    gone.set()
    return exchange
