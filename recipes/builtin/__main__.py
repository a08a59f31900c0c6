"""`python -m recipes.builtin`: make the built-in model, or score the one that is there."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from coserve.engine import Engine
from recipes.builtin.card import write_card
from recipes.builtin.conversations import held_out_conversations
from recipes.builtin.score import Score, answers_of, score_answers
from recipes.builtin.train import publish, train

SHIPPED = Path(__file__).parents[2] / "src" / "coserve" / "models" / "builtin"
QUICK_OUT = Path("build") / "builtin-quick"
QUESTIONS, QUICK_QUESTIONS = 920, 230
WRONG_SHOWN = 20


def main() -> None:
    """Train (unless --score-only), write the directory, score it, print the score, write the model card."""
    args = _arguments()
    out = args.out or (QUICK_OUT if args.quick else SHIPPED)
    questions = QUICK_QUESTIONS if args.quick else QUESTIONS
    if args.score_only:
        _report(score(out, questions))
        return
    minutes = 1.0 if args.quick else args.minutes
    with tempfile.TemporaryDirectory() as temporary:
        trained, run = train(args.work or Path(temporary), minutes=minutes, steps=args.steps, seed=args.seed)
        size = publish(trained, out)
    result = score(out, questions)
    vocabulary = json.loads((out / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    machine = f"{os.cpu_count()} CPU cores"
    write_card(out, run, result, vocabulary=vocabulary, size=size, asked=minutes, machine=machine)
    _report(result)
    print(f"{out}: {size / 1e6:.1f} MB, {run.tokens / 1e6:.1f} M tokens in {run.seconds / 60:.1f} minutes")


def score(directory: Path, questions: int) -> Score:
    """The held-out score of a model directory, by greedy decoding in coserve's engine."""
    conversations = list(held_out_conversations(questions))
    with Engine.from_pretrained(directory) as engine:
        return score_answers(conversations, answers_of(engine, [c.prompt for c in conversations]))


def _report(result: Score) -> None:
    for conversation, answer in result.wrong[:WRONG_SHOWN]:
        exchange = conversation.exchange
        print(f"[{exchange.category}] {conversation.prompt[-1]['content']}")
        print(f"    answered {answer!r}")
        print(f"    wanted   {exchange.answer!r}")
    print(result.table())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.builtin", description=__doc__)
    parser.add_argument("--minutes", type=float, default=22.0, help="how long to train (default: 22)")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of --minutes")
    parser.add_argument("--quick", action="store_true", help=f"a minute of training into {QUICK_OUT}")
    parser.add_argument("--out", type=Path, help="the model's directory (default: the shipped one)")
    parser.add_argument("--work", type=Path, help="keep data and checkpoints here (default: nowhere)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score-only", action="store_true", help="score the directory --out, train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
