"""Ordinary words that have nothing to do with chips (`words.txt`): around questions, and in those without an answer."""

from __future__ import annotations

from pathlib import Path


def _sections(text: str) -> dict[str, tuple[str, ...]]:
    """The words by the name in their section's first line; an empty line ends a section."""
    sections = (section.split() for section in text.split("\n\n") if section.strip())
    return {name: tuple(words) for name, *words in sections}


_WORDS = _sections(Path(__file__).with_name("words.txt").read_text(encoding="utf-8"))
NOUNS, VERBS, ADJECTIVES = _WORDS["nouns"], _WORDS["verbs"], _WORDS["adjectives"]
