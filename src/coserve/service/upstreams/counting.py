"""The tokens of a relayed reply: as the upstream's `usage` says, else one for each piece of content that it sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BYTES_A_TOKEN = 4
"""An estimate, where nobody tells the tokens of a text."""


class Count:
    """`prompt` is an estimate until the upstream has told."""

    def __init__(self, prompt_tokens: int):
        self._estimate = prompt_tokens
        self.reset()

    def reset(self) -> None:
        """Another upstream is asked: what was counted before was never delivered."""
        self.prompt = self._estimate
        self.cached = self.completion = 0

    def see_piece(self) -> None:
        """A piece of content has come: at least one token."""
        self.completion += 1

    def see_usage(self, reply: Mapping[str, Any]) -> bool:
        """Take over what a reply or a chunk says, also where Groq says it; False if it says nothing that holds."""
        extra = reply.get("x_groq")
        usage = reply.get("usage") or (extra.get("usage") if isinstance(extra, dict) else None)
        if not isinstance(usage, dict):
            return False
        prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens", 0))
        if prompt is None or completion is None:
            return False
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        self.prompt, self.completion, self.cached = prompt, completion, min(cached or 0, prompt)
        return True

    def as_usage(self) -> dict[str, Any]:
        """For a client that asked, where the upstream said nothing."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None
