"""Tokens counted as the client is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coserve.engine import Output


class Usage:
    """Counts prompts once each, however many choices they have, and what each choice delivered so far."""

    def __init__(self, prompts: Sequence[Sequence[int]]):
        self._prompt = sum(len(prompt) for prompt in prompts)
        self._completion: dict[int, int] = {}

    def see(self, choice: int, output: Output) -> None:
        self._completion[choice] = output.completion_tokens

    @property
    def completion(self) -> int:
        """Completion tokens so far, over all choices."""
        return sum(self._completion.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self.completion,
            "total_tokens": self._prompt + self.completion,
        }
