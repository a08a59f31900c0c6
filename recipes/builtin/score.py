"""The held-out score: greedy answers of coserve's engine to questions that were not trained on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from coserve.engine import Engine, Output, Request, SamplingParams
from recipes.builtin.conversations import Conversation
from recipes.builtin.exchange import Exchange

MAX_ANSWER_TOKENS = 160


@dataclass
class Tally:
    """Answers counted in one category."""

    asked: int = 0
    right: int = 0  # holds all that it must, or is the JSON that it must be
    exact: int = 0  # equals the reference, letter by letter
    json_asked: int = 0
    json_valid: int = 0

    def add(self, exchange: Exchange, answer: str) -> None:
        self.asked += 1
        self.right += is_right(exchange, answer)
        self.exact += answer.strip() == exchange.answer
        if exchange.json:
            self.json_asked += 1
            self.json_valid += parsed(answer) is not None


@dataclass
class Score:
    """The tallies by category, and every answer that was wrong."""

    categories: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    wrong: list[tuple[Conversation, str]] = field(default_factory=list)

    def add(self, conversation: Conversation, answer: str) -> None:
        self.categories[conversation.exchange.category].add(conversation.exchange, answer)
        if not is_right(conversation.exchange, answer):
            self.wrong.append((conversation, answer))

    @property
    def total(self) -> Tally:
        """All categories together."""
        tallies = self.categories.values()
        fields = ("asked", "right", "exact", "json_asked", "json_valid")
        return Tally(**{name: sum(getattr(t, name) for t in tallies) for name in fields})

    def table(self) -> str:
        """A Markdown table, one row per category."""
        rows = [*sorted(self.categories.items()), ("all", self.total)]
        lines = ["| category | asked | right | exact | valid JSON |", "|---|---|---|---|---|"]
        for name, t in rows:
            valid = f"{t.json_valid / t.json_asked:.1%}" if t.json_asked else ""
            lines.append(f"| {name} | {t.asked} | {t.right / t.asked:.1%} | {t.exact / t.asked:.1%} | {valid} |")
        return "\n".join(lines)


def parsed(answer: str) -> object | None:
    """The JSON object that the answer is; None if it is none."""
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def is_right(exchange: Exchange, answer: str) -> bool:
    """Whether the answer holds all that it must (without case), or is the JSON that it must be."""
    if exchange.json:
        return parsed(answer) == json.loads(exchange.answer)
    return all(part.lower() in answer.lower() for part in exchange.expect)


def score_answers(conversations: Iterable[Conversation], answers: Iterable[str]) -> Score:
    """Scores one answer per conversation, in order."""
    score = Score()
    for conversation, answer in zip(conversations, answers, strict=True):
        score.add(conversation, answer)
    return score


def answers_of(engine: Engine, prompts: Sequence[list[dict[str, str]]], model: str | None = None) -> list[str]:
    """The greedy answers to the prompts (chat messages), all in flight at once, in the prompts' order."""
    params = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)
    streams: list[SimpleQueue[Output]] = [SimpleQueue() for _ in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        ids = tuple(engine.tokenizer.apply_chat_template(prompt))
        engine.submit(Request(prompt=ids, params=params, model=model or engine.name), stream.put)
    return ["".join(_texts(stream)) for stream in streams]


def _texts(stream: SimpleQueue[Output]) -> Iterator[str]:
    """The texts of one request's outputs, to its last. Raises the error that it ends with, if any."""
    while True:
        output = stream.get()
        if output.error is not None:
            raise output.error
        yield output.text
        if output.finish_reason is not None:
            return
