"""Questions as people type them: words around them, one left out, a slip of a finger, no capitals."""

from __future__ import annotations

import random

OPENERS = tuple(
    f"{opener} "
    for opener in [
        "Hey,",
        "Hi,",
        "Hello!",
        "Please:",
        "Ok,",
        "So,",
        "Quick question:",
        "Hi there.",
        "I have a question:",
        "One more:",
        "Next question.",
        "Tell me please:",
        "Be so kind:",
        "Let me ask:",
        "Here is my question.",
        "My boss wants to know:",
        "For a report:",
        "I am curious:",
        "Just wondering,",
        "Sorry to bother you.",
        "Can you help me?",
        "Help me with this:",
        "I need help.",
        "Now something else.",
        "Good morning.",
        "Right,",
        "Well,",
        "Actually,",
        "By the way,",
        "Assistant,",
    ]
)
CLOSERS = (
    ", please.",
    ", please?",
    " please",
    " thanks",
    "??",
    "? Thanks!",
    "? Thank you.",
    "? I need it for a talk.",
    "? It is urgent.",
    "? Just curious.",
    "? I cannot find it.",
    "? I keep forgetting.",
    "? I am in a hurry.",
    "? You surely know.",
)
FILLERS = frozenset(["the", "is", "of", "me", "a", "an", "does", "do", "you", "please", "to", "for", "are", "what"])


def roughen(rng: random.Random, text: str) -> str:
    """The same question, made a little careless in some of five ways; often it stays as it is."""
    if rng.random() < 0.10:
        text = without_filler(rng, text)
    if rng.random() < 0.07:
        text = with_slip(rng, text)
    if rng.random() < 0.2:
        text = after_opener(rng.choice(OPENERS), text)
    if rng.random() < 0.1:
        text = text.rstrip(".?!") + rng.choice(CLOSERS)
    if rng.random() < 0.2:
        text = text.rstrip(".?!")
    if rng.random() < 0.25:
        text = text.lower()
    return text


def after_opener(opener: str, text: str) -> str:
    """The text after an opener; its first word small after a comma, unless it is a name."""
    if opener.endswith(", ") and text[1:2].islower():
        text = text[:1].lower() + text[1:]
    return opener + text


def without_filler(rng: random.Random, text: str) -> str:
    """The text without one of its small words, if it has one to spare."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word.lower() in FILLERS]
    if len(words) > 3 and places:
        del words[rng.choice(places)]
    return " ".join(words)


def with_slip(rng: random.Random, text: str) -> str:
    """Two inner letters swapped or one left out in an ordinary word, never in a figure or abbreviation."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha() and word[1:].islower()]
    if places:
        i = rng.choice(places)
        word, at = words[i], rng.randrange(1, len(words[i]) - 2)
        kept = word[at + 1] + word[at] + word[at + 2 :] if rng.random() < 0.5 else word[at + 1 :]
        words[i] = word[:at] + kept
    return " ".join(words)
