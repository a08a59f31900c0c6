"""The bytes that each token stands for, read off the decoder in `tokenizer.json`.

With them text can be put together one token at a time, at a constant cost each, as the tokenizer would have
decoded the whole. The decoders of the families we serve are known here; for any other there are no `Pieces`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Pieces:
    """How tokens become bytes, which joined and read as UTF-8 are the text."""

    to_bytes: Callable[[str], bytes]  # of a token, wherever it stands
    first_to_bytes: Callable[[str], bytes]  # of the first token of a text
    strip: str = ""  # this character is removed from the text's start ...
    strip_count: int = 0  # ... at most so often

    @classmethod
    def from_decoder(cls, decoder: Mapping[str, Any] | None) -> Pieces | None:
        """`decoder`: that part of `tokenizer.json`. None if it does something that is not known here."""
        steps = _flatten(decoder)
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteLevel"]:
            return cls(byte_level_bytes, byte_level_bytes)
        if "Metaspace" in kinds and set(kinds) <= {"Metaspace", "ByteFallback", "Fuse"}:
            return _metaspace(steps[kinds.index("Metaspace")], "ByteFallback" in kinds)
        if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Fuse" in kinds:
            return _replacing(steps)
        return None


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for part in decoder["decoders"] for step in _flatten(part)]
    return [decoder]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: a printable Latin-1 byte is its own character; the others are, in order, U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """A token outside the alphabet (one that was added as plain text) stands for itself."""
    try:
        return bytes([_BYTE_LEVEL[character] for character in token])
    except KeyError:
        return token.encode()


def _plain_bytes(byte_tokens: bool) -> Callable[[str], bytes]:
    """UTF-8, except that with `byte_tokens` "<0xE4>" is that one byte."""

    def to_bytes(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token) if byte_tokens else None
        return bytes([int(byte[1], 16)]) if byte else token.encode()

    return to_bytes


def _metaspace(step: Mapping[str, Any], byte_tokens: bool) -> Pieces:
    """SentencePiece's "▁" is a space, except where it was put before the first word."""
    mark = step.get("replacement", "▁")
    encode = _plain_bytes(byte_tokens)
    initial = " " if step.get("prepend_scheme") == "never" else ""
    return Pieces(
        to_bytes=lambda token: encode(token.replace(mark, " ")),
        first_to_bytes=lambda token: encode(token.replace(mark, initial)),
    )


def _replacing(steps: list[Mapping[str, Any]]) -> Pieces | None:
    """Llama 2's and Mistral's: replace "▁", bytes from byte tokens, join, strip the first space."""
    kinds = [step["type"] for step in steps]
    *before, last = steps
    stripping = last["type"] == "Strip"
    if "Strip" in kinds[:-1] or (stripping and (last["stop"] or kinds.index("Fuse") > len(before))):
        return None  # stripping the end of a text, or each token, cannot be done as it comes
    patterns = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
    replacements = [(old, new) for old, new in patterns if old is not None]
    if len(replacements) < len(patterns):
        return None  # a regular expression
    encode = _plain_bytes("ByteFallback" in kinds)

    def to_bytes(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        return encode(token)

    if not stripping:
        return Pieces(to_bytes, to_bytes)
    return Pieces(to_bytes, to_bytes, strip=last["content"], strip_count=last["start"])
