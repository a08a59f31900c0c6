"""uvicorn's HTTP protocol with the bounds that it lacks: on the size of a request's head, and on slow clients.

A client that sends its head or its body drop by drop, or does not read its reply, would hold a connection (and what
hangs on it: a request in the engine, a place among the concurrent ones) for as long as it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_TARGET = 8 << 10  # bytes of a path with its query
MAX_HEAD = 64 << 10  # bytes of all headers
HEAD_SECONDS = 20.0  # from a request's first byte to the end of its head; of a new connection, until its first byte
BODY_SECONDS = 20.0  # in which a body must bring
BODY_BYTES = 10 << 10  # so much, or end
READ_SECONDS = 60.0  # in which a client must take what waits for it


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that exceed the bounds: with 408, 414 or 431 where a reply makes sense."""

    _receiving = False
    _head_bytes = 0
    _target_bytes = 0
    _body_bytes = 0
    _refusal: tuple[int, str] | None = None
    _clock: asyncio.TimerHandle | None = None
    _reader_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self.resume_writing()
        super().connection_lost(exc)

    # ---- the head ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._receiving = True
        self._head_bytes = self._target_bytes = self._body_bytes = 0
        super().on_message_begin()
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._target_bytes += len(url)
        if self._target_bytes > MAX_TARGET:
            self._refuse(414, f"The path is longer than {MAX_TARGET} bytes.")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD:
            self._refuse(431, f"The headers are longer than {MAX_HEAD} bytes.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._start_clock(BODY_SECONDS, self._check_body)
        super().on_headers_complete()

    # ---- the body ---------------------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving = False
        self._stop_clock()
        super().on_message_complete()

    def _check_body(self) -> None:
        """Every so often while a body is on its way. Where the server itself does not read, the client is not slow."""
        if self._body_bytes < BODY_BYTES and not self.flow.read_paused:
            return self._close_late()
        self._body_bytes = 0
        self._start_clock(BODY_SECONDS, self._check_body)

    # ---- the reply --------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_clock = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reader_clock is not None:
            self._reader_clock.cancel()
            self._reader_clock = None
        super().resume_writing()

    # ---- the clock --------------------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._start_clock(HEAD_SECONDS, self._close_late)

    def _start_clock(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(seconds, then)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _close_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._receiving and not self._replying:
            self._send(408, "The request came too slowly.")
        else:
            self.transport.close()

    @property
    def _replying(self) -> bool:
        """Whether a reply is on its way, into which nothing may be written."""
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    # ---- refusals ---------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str) -> None:
        """Ends the parsing: the parser reports an error, and `send_400_response` says which."""
        self._refusal = (status, message)
        raise ValueError(message)

    def send_400_response(self, msg: str) -> None:
        status, message = self._refusal or (400, msg)
        self._send(status, message)

    def _send(self, status: int, message: str) -> None:
        kind = f'{{"error":{{"message":"{message}","type":"invalid_request_error","param":null,"code":null}}}}'
        head = f"content-type: application/json\r\ncontent-length: {len(kind)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + (head + kind).encode("ascii"))
        self.transport.close()
