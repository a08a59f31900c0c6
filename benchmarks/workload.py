"""Requests to serve: Poisson arrivals, with the lengths of a real conversational service, scaled down."""

from __future__ import annotations

import csv
import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coserve.engine import Request, SamplingParams

SCALE = 8.0  # the service's requests are this much longer than ours: on a CPU, seconds are long
_LENGTHS = Path(__file__).parent / "data" / "azure_llm_2023_conv_sample.csv"
_FIRST_PLAIN_TOKEN = 16  # lower ids may be special tokens


@dataclass(frozen=True)
class Shape:
    """A request's size in tokens."""

    prompt: int
    output: int


@dataclass(frozen=True)
class Arrival:
    """`at`: seconds from the start of the run."""

    at: float
    request: Request


@functools.cache
def trace_shapes() -> tuple[Shape, ...]:
    """The lengths in `data/`, as they were recorded."""
    with _LENGTHS.open(newline="") as file:
        return tuple(Shape(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file))


def scaled_shapes(context: int, scale: float = SCALE) -> list[Shape]:
    """The trace's lengths over `scale`, or over more where the longest would not fit into the context."""
    shapes = trace_shapes()
    longest = max(shape.prompt + shape.output for shape in shapes)
    scale = max(scale, longest / (context - 3))  # three tokens of room for the rounding up
    # Two tokens of output at least, so that each request has a time between two tokens.
    return [Shape(max(1, round(s.prompt / scale)), max(2, round(s.output / scale))) for s in shapes]


def endless_requests(
    model: str, vocabulary: int, context: int, seed: int, scale: float = SCALE, temperature: float = 0
) -> Iterator[Request]:
    """Requests of random tokens for a model, greedy ones unless told; the same seed gives the same sequence."""
    rng, shapes = random.Random(f"requests {seed}"), scaled_shapes(context, scale)
    while True:
        shape = rng.choice(shapes)
        prompt = tuple(rng.randrange(_FIRST_PLAIN_TOKEN, vocabulary) for _ in range(shape.prompt))
        yield Request(prompt, SamplingParams(max_tokens=shape.output, temperature=temperature, ignore_eos=True), model)


def poisson_arrivals(requests: Iterator[Request], rate: float, seed: int) -> Iterator[Arrival]:
    """The requests at `rate` per second on average. Another rate is the same sequence, faster or slower."""
    rng = random.Random(f"arrivals {seed}")
    times = itertools.accumulate(rng.expovariate(1.0) / rate for _ in itertools.count())
    return (Arrival(at, request) for at, request in zip(times, requests, strict=False))
