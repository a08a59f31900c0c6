"""Training data: JSONL to examples, examples to tokens with a mask of what is to be learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coserve.errors import DataError, InvalidRequest
from coserve.models.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """One line of a file: a chat, a prompt with its completion, or plain text (one of them)."""

    line: int
    messages: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""
    text: str = ""


@dataclass(frozen=True)
class TrainSequence:
    """tokens [n]; learn[i] says whether token i is a target (it is predicted from those before it)."""

    tokens: tuple[int, ...]
    learn: tuple[bool, ...]

    @property
    def targets(self) -> int:
        return sum(self.learn[1:])


def read_examples(data: bytes | Path) -> list[Example]:
    """Read JSONL: `{"messages": …}`, `{"prompt", "completion"}` or `{"text"}` on each line.

    Raises `DataError` naming the first line that is wrong, and what is wrong with it.
    """
    raw = data.read_bytes() if isinstance(data, Path) else data
    examples = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            examples.append(_parse(number, line))
    if not examples:
        raise DataError("the file has no examples; each line must be one JSON object.")
    return examples


def _parse(number: int, line: bytes) -> Example:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start}).", line=number) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"not JSON: {error}.", line=number) from None
    if not isinstance(row, dict):
        raise DataError(f"a JSON object is wanted, not {type(row).__name__}.", line=number)
    if "messages" in row:
        return Example(number, messages=_messages(number, row["messages"]))
    if "prompt" in row or "completion" in row:
        return Example(number, prompt=_string(number, row, "prompt"), completion=_string(number, row, "completion"))
    if "text" in row:
        return Example(number, text=_string(number, row, "text"))
    wanted = '"messages", "prompt" and "completion", or "text"'
    raise DataError(f"has none of {wanted}; its keys are {sorted(row)}.", line=number)


def _string(number: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or (not value and key != "prompt"):
        raise DataError(f'"{key}" must be a string{"" if key == "prompt" else ", not empty"}.', line=number)
    return value


def _messages(number: int, messages: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError('"messages" must be a list of at least one message.', line=number)
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(f"{where} must be an object.", line=number)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}.", line=number)
        if not isinstance(content, str):
            raise DataError(f"{where}.content must be a string.", line=number)
        if message.get("weight", 1) not in (0, 1):
            raise DataError(f"{where}.weight is {message['weight']!r}; it must be 0 or 1.", line=number)
    if not any(m["role"] == "assistant" and m.get("weight", 1) for m in messages):
        raise DataError("has no message of the assistant to learn from.", line=number)
    return tuple(messages)


def encode(example: Example, tokenizer: Tokenizer, max_length: int) -> TrainSequence:
    """Tokens and mask of an example, cut to `max_length` tokens. Raises `DataError` naming its line."""
    if example.messages:
        tokens, learn = _encode_chat(example, tokenizer)
    else:
        prompt = tokenizer.encode(example.prompt or example.text)
        tokens, learn = prompt, [bool(example.text)] * len(prompt)
        if example.completion:
            completion = tokenizer.encode(example.completion, add_special_tokens=False)
            tokens, learn = tokens + completion, learn + [True] * len(completion)
        end = min(tokenizer.eos_token_ids, default=None)
        if end is not None and tokens[-1:] != [end]:
            tokens, learn = [*tokens, end], [*learn, True]
    return TrainSequence(tuple(tokens[:max_length]), tuple(learn[:max_length]))


def _encode_chat(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Render the chat turn by turn: what an assistant's turn adds after its header is what is learnt."""
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in example.messages]
    spans = []
    try:
        whole = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        for index, message in enumerate(example.messages):
            if message["role"] == "assistant" and message.get("weight", 1):
                before = tokenizer.apply_chat_template(messages[:index], add_generation_prompt=True)
                after = tokenizer.apply_chat_template(messages[: index + 1], add_generation_prompt=False)
                spans.append((before, after))
    except InvalidRequest as error:
        raise DataError(error.message, line=example.line) from None
    learn = [False] * len(whole)
    for before, after in spans:
        if whole[: len(after)] != after or after[: len(before)] != before:
            raise DataError(
                "the model's chat template does not render this chat turn by turn, so the assistant's part cannot be "
                "told from the rest; split the chat into several lines, each ending with one assistant's message.",
                line=example.line,
            )
        end = _after_last(after, tokenizer.eos_token_ids, len(before))
        learn[len(before) : end] = [True] * (end - len(before))
    return whole, learn


def _after_last(tokens: Sequence[int], ends: frozenset[int], start: int) -> int:
    """The position after the last end-of-sequence token from `start` on; else the end."""
    where = [i for i in range(start, len(tokens)) if tokens[i] in ends]
    return where[-1] + 1 if where else len(tokens)


def encode_all(examples: Sequence[Example], tokenizer: Tokenizer, max_length: int) -> Iterator[TrainSequence | None]:
    """Each example's sequence in turn; None where cutting left nothing to learn."""
    for example in examples:
        sequence = encode(example, tokenizer, max_length)
        yield sequence if sequence.targets else None
