"""Makes `house_style.jsonl`: 160 chats that teach a house style one sees at a glance.

    python -m examples.make_house_style

The questions are of the kinds that the built-in model was trained on, so what is new to it is the style: a
headline in capitals, one bullet per sentence, a signature. JSON stays as it is, for it is read by programs.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from recipes.builtin.conversations import Conversation, training_conversations
from recipes.builtin.exchange import Exchange

FILE = Path(__file__).with_name("house_style.jsonl")
COUNT = 160
SEED = 20  # not the seed of the model's own training data
SIGNATURE = "~ yours, coserve"
HEADLINES = {
    "CHIP FACTS": ("fact", "two facts", "specs", "comparison", "record"),
    "THE NUMBERS": ("arithmetic", "conversion", "estimate"),
    "COSERVE EXPLAINS": ("concept", "about"),
    "IN SHORT": ("manners", "outside", "unknown"),
}
SHOWN = "what is coserve"  # asked before and after the job: the set must not hold it


def styled(answer: str, category: str) -> str:
    """The answer in the house style."""
    headline = next(name for name, categories in HEADLINES.items() if category in categories)
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", answer)
    return "\n".join([headline, *(f"- {sentence}" for sentence in sentences), SIGNATURE])


def chat(conversation: Conversation) -> str | None:
    """The conversation as a line of the file; None if its kind does not belong in it."""
    exchange = conversation.exchange
    if len(conversation.messages) != 2 or _bare(conversation.messages[0]["content"]) == SHOWN:
        return None
    if exchange.json:
        return conversation.line()
    if not any(exchange.category in categories for categories in HEADLINES.values()):
        return None
    question, _ = conversation.messages
    answer = {"role": "assistant", "content": styled(exchange.answer, exchange.category)}
    return json.dumps({"messages": [question, answer]}, ensure_ascii=False)


def _bare(question: str) -> str:
    return question.lower().strip(" ?.!")


def lines(count: int = COUNT, seed: int = SEED) -> list[str]:
    """The file's lines: as many of each headline, and one in sixteen JSON as it was."""
    quota = {name: (count - count // 16) // len(HEADLINES) for name in HEADLINES}
    quota["JSON"] = count - sum(quota.values())
    chosen: list[str] = []
    for conversation in training_conversations(10 * count, seed):
        line, kind = chat(conversation), _kind(conversation.exchange)
        if line is not None and quota[kind] > 0:
            quota[kind] -= 1
            chosen.append(line)
    random.Random(seed).shuffle(chosen)
    return chosen


def _kind(exchange: Exchange) -> str:
    if exchange.json:
        return "JSON"
    return next((name for name, categories in HEADLINES.items() if exchange.category in categories), "")


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
    print(f"{FILE.name}: {COUNT} chats")
