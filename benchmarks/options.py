"""The options that all benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.models import SHAPES


def benchmark_parser(name: str, description: str, models: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer and shorter runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument(
        "--model",
        nargs="+",
        default=list(models),
        metavar="MODEL",
        help=f"builtin, {', '.join(SHAPES)} (random weights) or directories; default {' '.join(models)}",
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="how often everything is run, in turn")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the made-up requests and data")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def at_least_8(text: str) -> int:
    """Tokens to time."""
    if positive(text) < 8:
        raise argparse.ArgumentTypeError(f"{text} is too few to time; at least 8")
    return int(text)


def seconds(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """ "0.25,0.5" -> (0.25, 0.5)"""
    return tuple(float(part) for part in text.split(","))
