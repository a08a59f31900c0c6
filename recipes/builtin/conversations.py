"""Whole conversations: exchanges mixed, follow-ups, system prompts; a training side and a held-out side."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from recipes.builtin import arithmetic, facts, talk
from recipes.builtin.chips import Chip, catalogue
from recipes.builtin.exchange import Draw, Exchange, Phrasings, number
from recipes.builtin.roughen import roughen

Message = dict[str, str]

# How often each kind of exchange is drawn for training. Facts and sums need the most practice.
KINDS = (
    (facts.fact, 20),
    (facts.brief_fact, 6),
    (facts.json_fact, 12),
    (facts.two_facts, 5),
    (facts.specs, 4),
    (facts.comparison, 14),
    (facts.record, 4),
    (facts.listing, 2),
    (facts.price, 1.5),
    (facts.unknown_chip, 4),
    (arithmetic.addition, 10),
    (arithmetic.subtraction, 7),
    (arithmetic.multiplication, 7),
    (arithmetic.conversion, 8),
    (arithmetic.model_size, 3),
    (arithmetic.fits, 5),
    (arithmetic.tokens_per_second, 4),
    (arithmetic.token_time, 2),
    (talk.concept, 10),
    (talk.about, 9),
    (talk.manners, 4),
    (talk.outside, 6),
)

PERSONA_SYSTEM = (
    "You are a helpful assistant.",
    "You are coserve's built-in assistant.",
    "You are a friendly assistant.",
    "You are an expert on AI chips.",
    "You are a helpful and honest assistant. Answer the user's questions.",
    "You are the built-in model of coserve. Answer in short sentences.",
    "Answer the question.",
    "You help people who choose chips.",
)

AND_CHIP = Phrasings(
    (
        "(And|What about|How about|And what about) {it}?",
        "And for {it}?",
        "(The same|Same|Same question) for {it}(.|?|, please.)",
        "{bare}?",
        "And {its}?",
        "Now {it}(.|, please.)",
        "Do you have (it|that) for {it}(, too|)?",
        "(Okay|Ok|Good), and {it}?",
        "Now the same for {it}.",
        "I also need (it|that) for {it}.",
        "Then {it}?",
        "(Tell|Give) me (that|it) for {it} (too|as well|).",
        "And (how|what) is (it|that) for {it}?",
    ),
    ("What would it be for {it}?", "Could you tell me the same about {it}?"),
)
AND_ATTRIBUTE = Phrasings(
    (
        "(And|What about|How about|And what about) (its|the) {noun}?",
        "(And|) what is its {noun}?",
        "What {noun} does it have?",
        "(Tell me|Give me) its {noun}(, too|).",
        "(And|) the {noun}?",
        "I would also like (to know|) its {noun}.",
        "What is the {noun} of it?",
        "Also its {noun}, please.",
        "(And|) how about the {noun} of that chip?",
        "Then its {noun}?",
        "(Ok|Good), and the {noun}?",
        "Do you know its {noun}, too?",
        "(What|Which) {noun} is it?",
        "{noun}?",
    ),
    ("Its {noun} would interest me too.", "Now I also need its {noun}."),
)
AND_UNIT = Phrasings(
    (
        "(And|What is that|How much is that|And what is that) in GB/s?",
        "In GB/s?",
        "(Convert|Change) (that|it) (to|into) GB/s.",
        "How many GB/s (is that|are that|)?",
        "(Give|Tell) me that in GB/s.",
        "I need it in GB/s.",
        "What would that be in GB/s?",
        "Same in GB/s, please.",
    ),
    ("Now the same in GB/s.", "That makes how many GB/s?"),
)
AND_JSON = Phrasings(
    (
        "(And|Now|Give me that|The same|That) (as|in) JSON(.|?|, please.)",
        "(Can|Could) I have (that|it) (as|in) JSON?",
        "JSON, please.",
        "(Give|Send|Show) me (that|it) (as|in) JSON(.|, please.)",
        "Now in JSON(.|?)",
        "I want that (as|in) JSON.",
        "Turn that into JSON.",
    ),
    ("Please repeat that in JSON.", "I need it as JSON."),
)


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with the assistant's turn; the last exchange is the one that is scored."""

    messages: tuple[Message, ...]
    exchange: Exchange

    @property
    def prompt(self) -> list[Message]:
        """All messages but the last answer."""
        return [dict(m) for m in self.messages[:-1]]

    def line(self) -> str:
        """The conversation as a line of chat JSONL."""
        return json.dumps({"messages": self.messages}, ensure_ascii=False)


def training_conversations(count: int, seed: int = 0) -> Iterator[Conversation]:
    """`count` conversations of one to four exchanges. The same for the same seed."""
    rng = random.Random(seed)
    draw = Draw(rng)
    for _ in range(count):
        choice = rng.random()
        if choice < 0.12:
            yield _follow_up(draw)
        elif choice < 0.30:
            yield _assemble(draw, [_plain(draw) for _ in range(rng.choice((2, 2, 3)))])
        else:
            yield _assemble(draw, [_any(draw)])


def held_out_conversations(count: int, seed: int = 1) -> Iterator[Conversation]:
    """`count` conversations whose last question is new in its phrasing or its combination, kind by kind."""
    rng = random.Random(seed)
    makers = [kind for kind, _ in KINDS] + [_follow_up]
    for i in range(count):
        make = makers[i % len(makers)]
        by_phrasing = make not in COMBINED or (i // len(makers)) % 2 == 0
        draw = Draw(rng, unseen_phrasing=by_phrasing, held_out_combination=not by_phrasing)
        made = make(draw)
        yield made if isinstance(made, Conversation) else _assemble(draw, [made])


# The kinds that split by combination too; the others are scored on their wording alone.
COMBINED = (
    facts.brief_fact,
    facts.json_fact,
    facts.two_facts,
    facts.comparison,
    arithmetic.addition,
    arithmetic.subtraction,
    arithmetic.multiplication,
    arithmetic.conversion,
    arithmetic.model_size,
    arithmetic.fits,
    arithmetic.tokens_per_second,
)


def _any(draw: Draw) -> Exchange:
    return draw.rng.choices([k for k, _ in KINDS], weights=[w for _, w in KINDS])[0](draw)


def _plain(draw: Draw) -> Exchange:
    """An exchange that needs no system prompt, for conversations of several."""
    while (exchange := _any(draw)).system is not None:
        pass
    return exchange


def _assemble(draw: Draw, exchanges: list[Exchange]) -> Conversation:
    """The messages: the system prompt that an exchange needs, or in one of four a persona, then the turns."""
    messages: list[Message] = []
    system = exchanges[-1].system
    if system is None and draw.chance(0.2):
        system = draw.one_of(PERSONA_SYSTEM)
    if system is not None:
        messages.append({"role": "system", "content": system})
    for exchange in exchanges:
        messages.append({"role": "user", "content": roughen(draw.rng, exchange.question)})
        messages.append({"role": "assistant", "content": exchange.answer})
    return Conversation(tuple(messages), exchanges[-1])


def _follow_up(draw: Draw) -> Conversation:
    """A fact, then a question that only makes sense after it: of another chip, figure or unit, or JSON."""
    chip, attribute = draw.one_of(catalogue()), draw.one_of(facts.ATTRIBUTES)
    kind = draw.rng.choices(("chip", "attribute", "unit", "json"), weights=(4, 4, 1, 1))[0]
    if kind == "unit":
        attribute = facts.BANDWIDTH
    before = draw.familiar()
    first = facts.plain_fact(facts.chip_questions(before, chip, attribute), chip, attribute)
    turns = [first]
    if kind == "chip":
        for _ in range(1 if draw.scoring else draw.one_of((1, 1, 2))):
            other = draw.one_of([c for c in catalogue() if c is not chip])
            turns.append(_about(draw.phrase(AND_CHIP, **facts.names(draw, other)), other, attribute))
            chip = other
    elif kind == "attribute":
        for _ in range(1 if draw.scoring else draw.one_of((1, 1, 2))):
            attribute = draw.one_of([a for a in facts.ATTRIBUTES if a is not attribute])
            if draw.chance(0.3):
                question = draw.phrase(attribute.own, it="it", its="its", It="It")
            else:
                question = draw.phrase(AND_ATTRIBUTE, noun=draw.one_of(attribute.nouns))
            turns.append(_about(question, chip, attribute))
    elif kind == "unit":
        tb, gb = f"{number(chip.bandwidth)} TB/s", f"{number(chip.bandwidth * 1000)} GB/s"
        turns.append(Exchange("follow-up", draw.phrase(AND_UNIT), f"{tb} is {gb}.", (gb,)))
    else:
        as_json = facts.json_exchange(draw.phrase(AND_JSON), None, chip, (attribute,))
        turns.append(as_json)
    return _assemble(draw, turns)


def _about(question: str, chip: Chip, attribute: facts.Attribute) -> Exchange:
    exchange = facts.plain_fact(question, chip, attribute)
    return Exchange("follow-up", question, exchange.answer, (chip.name, *exchange.expect))
