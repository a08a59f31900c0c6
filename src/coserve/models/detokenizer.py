"""Text from tokens as they come, and the stop strings that end it. The cost of a token is constant."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from coserve.models.pieces import Pieces
from coserve.models.tokenizer import Tokenizer


class Detokenizer:
    """Incremental decoding for one request.

    The pieces joined are `Tokenizer.decode` of all tokens, up to the first stop string; neither it nor what
    follows is ever given out. First means complete first: how the text was cut into tokens is no matter.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._skipped = tokenizer.special_token_ids
        self._stream: _Stream = (
            _WindowStream(tokenizer) if tokenizer.pieces is None else _ByteStream(tokenizer, tokenizer.pieces)
        )
        self._stops = [_StopString(text) for text in stop if text]
        self._held = ""  # may be the start of a stop string
        self._stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """Take the next token: (text that is final now, whether a stop string is complete).

        Bytes of an unfinished character and text that may begin a stop string are held back. Special tokens
        have no text. After a stop string there is no more text.
        """
        if self._stopped:
            return "", True
        if token_id in self._skipped:
            return "", False
        return self._settle(self._stream.push(token_id)), self._stopped

    def flush(self) -> str:
        """What was held back, once no token will follow."""
        if self._stopped:
            return ""
        text = self._settle(self._stream.flush())
        held, self._held = self._held, ""
        return text if self._stopped else text + held

    def _settle(self, new: str) -> str:
        """The part of the held and new text that is sure to come before any stop string."""
        if not self._stops:
            return new
        text = self._held + new
        matched = 0
        for end, character in enumerate(new, start=len(self._held) + 1):
            matched = max(stop.advance(character) for stop in self._stops)
            complete = [len(stop.text) for stop in self._stops if stop.complete]
            if complete:
                self._held, self._stopped = "", True
                return text[: end - max(complete)]
        if new:
            final = len(text) - matched
            self._held = text[final:]
            return text[:final]
        return ""


class _StopString:
    """Looks for one string, character by character (Knuth, Morris and Pratt: nothing is compared twice)."""

    def __init__(self, text: str):
        self.text = text
        self._fallback = _fallbacks(text)
        self._matched = 0  # the text so far ends with so many of the first characters

    @property
    def complete(self) -> bool:
        return self._matched == len(self.text)

    def advance(self, character: str) -> int:
        """Take a character; how many of the string's first ones the text now ends with."""
        matched = self._matched
        while matched and self.text[matched] != character:
            matched = self._fallback[matched - 1]
        self._matched = matched + (self.text[matched] == character)
        return self._matched


def _fallbacks(text: str) -> list[int]:
    """At i: the length of the longest proper prefix of text[: i + 1] that is also its end."""
    lengths = [0] * len(text)
    for i in range(1, len(text)):
        length = lengths[i - 1]
        while length and text[i] != text[length]:
            length = lengths[length - 1]
        lengths[i] = length + (text[i] == text[length])
    return lengths


class _Stream(Protocol):
    """Tokens to text, without special tokens."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class _ByteStream:
    """For tokens whose bytes are known: join them, read them as UTF-8.

    What is no UTF-8 becomes U+FFFD. (With SentencePiece's byte tokens, `decode` lets one bad byte spoil the
    whole run of byte tokens around it, even characters before it, which may have been given out already.)
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Pieces):
        self._token_of = tokenizer.backend.id_to_token
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        self._to_strip = pieces.strip_count

    def push(self, token_id: int) -> str:
        token = self._token_of(token_id)
        if token is None:
            return ""
        piece = self._pieces.first_to_bytes(token) if self._first else self._pieces.to_bytes(token)
        self._first = False
        return self._strip(self._utf8.decode(piece))

    def flush(self) -> str:
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        """The text's first characters decide; the first that is not `strip` ends it."""
        while self._to_strip and text:
            if not text.startswith(self._pieces.strip):
                self._to_strip = 0
                break
            text = text[len(self._pieces.strip) :]
            self._to_strip -= 1
        return text


class _WindowStream:
    """For any other decoder: decode a few tokens with and without the new ones; take the difference."""

    _LONGEST_WAIT = 8  # tokens; a UTF-8 character has at most 4 bytes

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._context: list[int] = []  # given out already
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        self._waiting.append(token_id)
        text = self._new_text()
        if (not text or text.endswith("�")) and len(self._waiting) < self._LONGEST_WAIT:
            return ""
        return self._give_out(text)

    def flush(self) -> str:
        return self._give_out(self._new_text())

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._waiting)[len(before) :]

    def _give_out(self, text: str) -> str:
        self._context, self._waiting = self._waiting, []
        return text
