"""The vocabulary of the generator: an exchange, phrasings with alternatives, and what is held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_SHARE = 0.12  # of the combinations (chip and attribute in JSON, pair of chips, pair of numbers, ...)


@dataclass(frozen=True)
class Exchange:
    """A question, its answer, and what a right answer has to contain."""

    category: str
    question: str
    answer: str
    expect: tuple[str, ...]  # each must occur in the answer (compared without case)
    system: str | None = None  # a system prompt that the answer depends on
    json: bool = False  # the answer must be JSON, equal to `answer` as parsed


@dataclass(frozen=True)
class Phrasings:
    """Ways to put one question: `seen` ones are trained on, `unseen` ones only asked when scoring.

    A phrasing may hold alternatives, "(What is|What's) the {noun} of {it}?", and slots.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def also(self, other: Phrasings) -> Phrasings:
        return Phrasings(self.seen + other.seen, self.unseen + other.unseen)


@dataclass(frozen=True)
class Draw:
    """Where the generator draws from: a random source, and which side of each split.

    Training draws seen phrasings and kept combinations. Scoring draws one or the other of its opposites, so
    that a wrong answer says whether it was the wording or the combination that did not generalise.
    """

    rng: random.Random
    unseen_phrasing: bool = False
    held_out_combination: bool = False

    @property
    def scoring(self) -> bool:
        return self.unseen_phrasing or self.held_out_combination

    def phrase(self, phrasings: Phrasings, **slots: str) -> str:
        """One phrasing from this draw's side of the split, alternatives chosen and slots filled."""
        pattern = self.rng.choice(phrasings.unseen if self.unseen_phrasing else phrasings.seen)
        return say(self.rng, pattern, **slots)

    def combination(self, form: str, candidates: Iterable[T], key=str) -> T:
        """One candidate from this draw's side of the split of `form`."""
        pool = [c for c in candidates if is_held_out(form, key(c)) == self.held_out_combination]
        return self.rng.choice(pool)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def one_of(self, items: Sequence[T]) -> T:
        return self.rng.choice(items)

    def familiar(self) -> Draw:
        """The same random source on the training side: for the parts of a test that are not under test."""
        return replace(self, unseen_phrasing=False, held_out_combination=False)


@cache
def is_held_out(form: str, key: str) -> bool:
    """Whether the combination `key` of `form` is kept out of training. The same on every machine and run."""
    digest = hashlib.sha256(f"{form}/{key}".encode()).digest()
    return digest[0] < HELD_OUT_SHARE * 256


def say(rng: random.Random, pattern: str, **slots: str) -> str:
    """Chooses an alternative in each pair of parentheses, innermost first; fills the slots."""
    while (found := re.search(r"\(([^()]*)\)", pattern)) is not None:
        pattern = pattern[: found.start()] + rng.choice(found[1].split("|")) + pattern[found.end() :]
    text = re.sub(r"  +", " ", pattern.format(**slots)).strip()
    return text[:1].upper() + text[1:]


def number(value: float) -> str:
    """A figure as it is written in answers: no trailing zeros, no exponent."""
    return f"{value:.4f}".rstrip("0").rstrip(".")
