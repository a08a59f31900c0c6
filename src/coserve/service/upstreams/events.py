"""A byte stream cut into server-sent events, and what one may know of an event without reading its JSON.

A quote inside a JSON string has a backslash before it, so a key with both its quotes, such as `"usage":`, cannot be
part of anybody's text: the patterns below find keys, and nothing that a model said. They look back for that backslash
only after the key, since a pattern that begins with plain text is found ten times faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from coserve.service.upstreams.failures import Failure

LARGEST = 4 << 20
"""Bytes of one event."""
_END = re.compile(rb"\n\r?\n")
_DATA = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)
_CONTENT = re.compile(rb'"(?<!\\")(?:content|text|reasoning|reasoning_content|refusal|arguments|name)"\s*:\s*"[^"]')
_FINISH = re.compile(rb'"finish_reason"(?<!\\"finish_reason")\s*:\s*"')
_USAGE = re.compile(rb'"usage"(?<!\\"usage")\s*:\s*\{')
_ERROR = re.compile(rb'"error"(?<!\\"error")\s*:\s*[{"]')


class Events:
    """Feed it bytes, and take the events that are complete; what is left belongs to the next."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of each event that has some; comments are left out. Raises `Failure` for one that has no end."""
        *whole, self._rest = _END.split(self._rest + piece)
        if len(self._rest) > LARGEST:
            raise Failure("invalid", "an event of its stream has no end")
        for text in whole:
            if data := data_of(text):
                yield data

    def rest(self) -> bytes:
        """The data of a last event without an empty line after it."""
        return data_of(self._rest)


def data_of(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:].rstrip(b"\r")
    return b" ".join(_DATA.findall(event)).strip()  # in JSON a line's end is a space


def has_content(data: bytes) -> bool:
    """Whether a chunk brings a piece of an answer: a token, as far as anybody can count from here."""
    return _CONTENT.search(data) is not None


def has_finish(data: bytes) -> bool:
    return _FINISH.search(data) is not None


def may_have_usage(data: bytes) -> bool:
    return _USAGE.search(data) is not None


def may_have_error(data: bytes) -> bool:
    return _ERROR.search(data) is not None
