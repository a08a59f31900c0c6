"""The HTTP client for one upstream: its base URL, its key, its pool of connections, and nothing else.

aiohttp's client costs about 0.16 ms of processor time a request on the machine where httpx costs 2.5 ms
(`benchmarks/upstream_clients.py`): with httpx one worker could not pass 1,000 requests a second on.
"""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

from coserve.service.upstreams.config import UpstreamConfig
from coserve.service.upstreams.failures import LONGEST_HOLD, Failure

LARGEST = 64 << 20
"""Bytes of a whole reply; more is no answer of a language model."""
ERRORS = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, ConnectionError)
OURS = {401: "its key", 402: "its bill", 403: "its key", 404: "its address or the model's name there"}
"""What is wrong at our end when an upstream answers with this."""


class Client:
    """To be opened and closed on the loop that uses it. Every call raises `Failure`, and waits as long as it may:
    whoever calls sets the time."""

    def __init__(self, config: UpstreamConfig, key: str | None):
        self._config = config
        self._key = key
        self._headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "coserve"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._config.connections, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.timeout.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(self, path: str, body: bytes) -> Reply:
        """The reply to a request, its body yet unread. Whoever gets it must close it."""
        url = self._config.base_url + path
        if self._session.closed:
            raise Failure("connect", "it is no longer in the configuration")
        try:
            return Reply(await self._session.post(url, data=body, headers=self._headers, allow_redirects=False))
        except ERRORS as error:
            raise _failure(error) from None

    async def alive(self) -> None:
        """Any answer to GET /models but one of a server in trouble, or one that does not know our key."""
        url = self._config.base_url + "/models"
        try:
            async with self._session.get(url, headers=self._headers, allow_redirects=False) as response:
                if response.status in (401, 402, 403) or response.status >= 500:
                    raise Failure("failed", f"its health check was answered with {response.status}")
        except ERRORS as error:
            raise _failure(error) from None

    def without_key(self, text: str) -> str:
        """What an upstream says, fit to be shown."""
        return text.replace(self._key, "***") if self._key else text


class Reply:
    def __init__(self, response: aiohttp.ClientResponse):
        self._response = response
        self.status = response.status

    @property
    def is_events(self) -> bool:
        return self._response.content_type == "text/event-stream"

    @property
    def at_end(self) -> bool:
        return self._response.content.at_eof()

    def close(self) -> None:
        """Close the connection, unless the reply was read to its end: then it is kept for the next request."""
        self._response.close()

    async def read(self, limit: int = LARGEST) -> bytes:
        """The whole body. Raises `Failure`, also above `limit` bytes."""
        body = bytearray()
        while piece := await self.piece():
            body += piece
            if len(body) > limit:
                raise Failure("invalid", "its reply has no end")
        return bytes(body)

    async def piece(self) -> bytes:
        """What has arrived since the last one; nothing at the end."""
        try:
            return await self._response.content.readany()
        except ERRORS as error:
            raise _failure(error) from None

    def failure(self) -> Failure | None:
        """What the status says, unless it is an answer, or blames the request."""
        if self.status == 429:
            return Failure("limited", "it is at its limits", self.retry_after)
        if self.status in (408, 409, 425) or self.status >= 500:
            return Failure("failed", f"it answered with {self.status}", self.retry_after)
        if self.status in OURS or 300 <= self.status < 400 or self.status < 200:
            return Failure("refused", f"it answered with {self.status}: check {OURS.get(self.status, 'its address')}")
        return None

    @property
    def retry_after(self) -> float | None:
        """Seconds, of `retry-after-ms` or `retry-after` in either of its forms; at most `LONGEST_HOLD`."""
        headers = self._response.headers
        with suppress(ValueError):
            seconds = float(headers.get("retry-after-ms", "")) / 1000
            return _believed(seconds)
        said = headers.get("retry-after", "")
        with suppress(ValueError):
            return _believed(float(said))
        with suppress(ValueError, TypeError):
            at = parsedate_to_datetime(said)
            return _believed((at - datetime.now(UTC)).total_seconds())
        return None


def _believed(seconds: float) -> float | None:
    return min(max(seconds, 0.0), LONGEST_HOLD) if math.isfinite(seconds) else None


def _failure(error: Exception) -> Failure:
    """One of aiohttp's `ERRORS`, without addresses."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failure("connect", "it could not be reached in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failure("connect", "it could not be reached")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.http.HttpProcessingError):
        return Failure("invalid", "its reply is no HTTP")
    return Failure("connect", "it closed the connection")
