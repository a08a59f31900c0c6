"""Bounds on what one connection may take: the size of a request's head, and slow clients."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from coserve.service import Server, protocol
from tests.service.conftest import KEY, start

BODY = json.dumps({"model": "base", "messages": [{"role": "user", "content": "Hi"}]}).encode()


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """A server whose patience is a test's."""
    patched = pytest.MonkeyPatch()
    patched.setattr(protocol, "HEAD_SECONDS", 0.4)
    patched.setattr(protocol, "BODY_SECONDS", 0.4)
    patched.setattr(protocol, "READ_SECONDS", 0.5)
    server = start(tmp_path_factory.mktemp("home"))
    yield server
    server.stop()
    patched.undo()


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.settimeout(10)
    return connection


def head(*lines: str, length: int | None = len(BODY)) -> bytes:
    first = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    size = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*first, *size, *lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return received


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def test_an_ordinary_request_and_a_second_one_on_the_same_connection(hurried):
    with connect(hurried) as connection:
        for _ in range(2):
            connection.sendall(head() + BODY)
            reply = connection.recv(65536)
            assert status(reply) == 200
            time.sleep(0.6)  # longer than a head may take: between requests only keep-alive counts


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /" + b"x" * (9 << 10) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * (65 << 10) + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * (8 << 10) + b"\r\n", 431),
        (b"not http at all\r\n\r\n", 400),
    ],
)
def test_a_head_beyond_the_bounds_is_refused_and_the_connection_closed(hurried, request_bytes, expected):
    with connect(hurried) as connection:
        connection.sendall(request_bytes)
        reply = read_all(connection)
    assert status(reply) == expected
    assert json.loads(reply.split(b"\r\n\r\n", 1)[1])["error"]["message"]


@pytest.mark.parametrize(
    "smuggling",
    [
        head("Transfer-Encoding: chunked") + b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        head("Content-Length: 5") + BODY,
        head("Transfer-Encoding: chunked, identity", length=None) + b"0\r\n\r\n",
        head("Transfer-Encoding : chunked", length=None) + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked", length=None) + b"0x5\r\nhello\r\n0\r\n\r\n",
        head(length=None).replace(b"Host: x", b"Host: x\r\nContent-Length: +3") + b"abc",
        head().replace(b"\r\nHost", b"\r\n Host") + BODY,
    ],
    ids=["both lengths", "two lengths", "chunked not last", "space before colon", "odd chunk", "signed", "folded"],
)
def test_what_two_parsers_could_read_differently_is_refused(hurried, smuggling):
    with connect(hurried) as connection:
        connection.sendall(smuggling)
        reply = read_all(connection)
    assert status(reply) == 400
    assert reply.count(b"HTTP/1.1 ") == 1, "nothing that hid in the first request was answered"


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half"])
def test_a_head_that_does_not_come_ends_the_connection(hurried, sent):
    with connect(hurried) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        reply = read_all(connection)
    assert time.monotonic() - started < 5
    assert status(reply) == 408 if sent else reply == b""


def test_a_head_that_comes_drop_by_drop_ends_the_connection_too(hurried):
    started = time.monotonic()
    with connect(hurried) as connection, contextlib.suppress(ConnectionError):
        for drop in b"GET /health HTTP/1.1\r\nX-Slow: " + b"x" * 60:
            connection.sendall(bytes([drop]))
            time.sleep(0.05)
    assert time.monotonic() - started < 3


def test_a_body_that_comes_drop_by_drop_ends_the_connection(hurried):
    with connect(hurried) as connection:
        connection.sendall(head(length=5000))
        started = time.monotonic()
        reply = b""
        connection.settimeout(0.05)
        while not reply and time.monotonic() - started < 5:
            connection.sendall(b" ")
            try:
                reply = connection.recv(65536)
            except TimeoutError:
                continue
    assert status(reply) == 408


def test_a_client_that_does_not_read_its_reply_is_let_go(hurried):
    engine = hurried.engine
    engine.answer = "x" * 900
    prompts = json.dumps({"model": "base", "prompt": ["a"] * 100, "stream": True, "max_tokens": 900}).encode()
    request = head(length=len(prompts)).replace(b"/v1/chat/completions", b"/v1/completions")
    try:
        with connect(hurried) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request + prompts)
            wait_for(lambda: running(hurried) > 1)
            wait_for(lambda: running(hurried) == 1)  # the one that asks
            assert len(read_all(connection)) < 100 * 900 * 50, "most of it was never sent"
    finally:
        engine.answer = "Hello, world!"


def running(server: Server) -> int:
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    return int(float(re.search(r"^coserve_http_requests_running (\S+)$", text, re.MULTILINE)[1]))


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_slow_upload_that_keeps_going_is_let_be(hurried):
    with connect(hurried) as connection:
        connection.sendall(head(length=len(BODY) + 40_000))
        for _ in range(10):
            connection.sendall(b" " * 4000)
            time.sleep(0.1)
        connection.sendall(BODY)
        assert status(connection.recv(65536)) == 200
