"""Log probabilities of tokens in the shapes of OpenAI's two completion APIs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coserve.engine import TokenLogprob

LOWEST = -9999.0  # JSON has no infinity; OpenAI's own stand-in


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # a token that is only part of a character has no text of its own, hence no bytes that we could tell
    octets = None if "�" in text else list(text.encode())
    return {"token": text, "logprob": _finite(logprob), "bytes": octets}


def chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    """One item of `choices[].logprobs.content`."""
    top = [_entry(text, logprob) for _, text, logprob in token.top]
    return {**_entry(token.text, token.logprob), "top_logprobs": top}


@dataclass
class CompletionLogprobs:
    """`choices[].logprobs` of a plain completion; `offset` is where the next token starts, in characters."""

    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, token: TokenLogprob) -> None:
        top: dict[str, float] = {}
        for _, text, logprob in token.top:  # best first: of two tokens with one text the better one stays
            top.setdefault(text, _finite(logprob))
        top.setdefault(token.text, _finite(token.logprob))
        self.tokens.append(token.text)
        self.token_logprobs.append(_finite(token.logprob))
        self.top_logprobs.append(top)
        self.text_offset.append(self.offset)
        self.offset += len(token.text)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
