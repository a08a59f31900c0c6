"""What a request asks for, as far as its limits and its bill go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wish:
    endpoint: str  # "chat", "completions": how the ledger names it
    model: str
    prompt_tokens: int  # of all prompts together
    longest_prompt: int  # tokens
    choices: int  # completions, over all prompts
    max_tokens: int | None = None  # of each; None: up to the end of the context
    service_tier: str | None = None  # as the client asked
    param: str = "messages"  # the field in which the prompt came
    batch_id: str | None = None  # the batch that it is part of
    usage_id: str | None = None  # its row in the ledger; None: a new one
