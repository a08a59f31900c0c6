"""The generator of the built-in model's conversations: the same each time, right, and truly held out."""

import json
import random
import re

import pytest

from recipes.builtin import arithmetic, facts, talk
from recipes.builtin.chips import catalogue
from recipes.builtin.conversations import KINDS, held_out_conversations, training_conversations
from recipes.builtin.exchange import Draw, is_held_out, number, say
from recipes.builtin.roughen import roughen
from recipes.builtin.score import is_right, score_answers

SEEN = Draw(random.Random(0))


def exchanges(kind, count: int = 150, draw: Draw | None = None):
    draw = draw or Draw(random.Random(1))
    return [kind(draw) for _ in range(count)]


def test_the_same_seed_gives_the_same_conversations():
    first = [c.line() for c in training_conversations(200, seed=7)]
    assert first == [c.line() for c in training_conversations(200, seed=7)]
    assert first != [c.line() for c in training_conversations(200, seed=8)]


def test_every_chip_has_a_source():
    assert len(catalogue()) >= 12
    assert len({c.name for c in catalogue()}) == len(catalogue())


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS], ids=lambda kind: kind.__name__)
def test_the_reference_answer_of_each_kind_is_right_by_the_scorer(kind):
    for exchange in exchanges(kind):
        assert exchange.question
        assert is_right(exchange, exchange.answer)
        assert not is_right(exchange, "no")


def test_sums_are_right():
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for kind in (arithmetic.addition, arithmetic.subtraction, arithmetic.multiplication):
        for exchange in exchanges(kind):
            if not exchange.json:
                a, sign, b, _, result = exchange.answer.rstrip(".").split()
                assert operations[sign](int(a), int(b)) == int(result)


def test_conversions_are_right():
    factors = {(a, b): factor for a, b, factor in arithmetic.UNITS}
    for exchange in exchanges(arithmetic.conversion):
        x, unit, _, y, other = exchange.answer.rstrip(".").split()
        assert float(y) == pytest.approx(float(x) * factors[unit, other])


def test_a_chip_that_a_model_does_not_fit_is_said_to_be_too_small():
    pattern = re.compile(r"needs ([\d.]+) GB and the .* has (\d+) GB: (it fits|it does not fit)\.")
    for exchange in exchanges(arithmetic.fits):
        need, have, verdict = pattern.search(exchange.answer).groups()
        assert (float(need) < float(have)) == (verdict == "it fits")


def test_comparisons_name_the_chip_that_is_ahead():
    h100, h200 = (next(c for c in catalogue() if c.name == name) for name in ("H100", "H200"))
    assert facts.compare_answer(facts.MEMORY, h100, h200)[0] == "The H200 has more memory: 141 GB against 80 GB."
    assert facts.compare_answer(facts.POWER, h100, h200)[0] == "They are equal: 700 W each."


def test_json_answers_hold_the_catalogues_figures():
    chips = {c.name: c for c in catalogue()}
    by_key = {a.key: a for a in facts.ATTRIBUTES}
    for exchange in exchanges(facts.json_fact):
        body = json.loads(exchange.answer)
        chip = chips[body.pop("chip")]
        assert body
        assert all(value == by_key[key].get(chip) for key, value in body.items())


def test_what_a_maker_does_not_publish_is_said_to_be_unknown():
    tpu = next(c for c in catalogue() if c.power is None)
    assert facts.POWER.answer(tpu).startswith("I do not know")


def test_held_out_questions_are_not_trained_on():
    trained = {(c.exchange.system, c.messages[-2]["content"].lower()) for c in training_conversations(6000)}
    asked = [c for c in held_out_conversations(460) if c.exchange.category != "follow-up"]
    shared = [q for q in asked if (q.exchange.system, q.messages[-2]["content"].lower()) in trained]
    assert shared == []


def test_training_and_scoring_draw_from_different_combinations():
    candidates = range(500)
    kept = {SEEN.combination("form", candidates) for _ in range(3000)}
    scoring = Draw(random.Random(0), held_out_combination=True)
    held_out = {scoring.combination("form", candidates) for _ in range(3000)}
    assert not kept & held_out
    assert 0.05 < len(held_out) / len(kept | held_out) < 0.2


def test_sums_that_are_held_out_do_not_occur_in_training():
    for exchange in exchanges(arithmetic.addition, 300, SEEN):
        if not exchange.json:
            a, _, b, *_ = exchange.answer.split()
            low, high = sorted((int(a), int(b)))
            assert not is_held_out("add", f"{low}+{high}")


def test_unseen_phrasings_are_not_seen_ones():
    tables = [v for module in (facts, arithmetic, talk) for v in vars(module).values() if hasattr(v, "unseen")]
    tables += [a.own for a in facts.ATTRIBUTES]
    tables += [t.own for t in (*talk.CONCEPTS, *talk.IDENTITY, *talk.WHY, *talk.HOW, *talk.MANNERS)]
    assert len(tables) > 40
    for table in tables:
        assert not set(table.seen) & set(table.unseen)


def test_a_phrasing_chooses_and_fills():
    text = say(random.Random(0), "(what is|what (was|has been)) the {noun} (of {it}|)?", noun="year", it="the L4")
    assert re.fullmatch(r"What (is|was|has been) the year( of the L4)? ?\?", text)


def test_careless_typing_keeps_the_figures():
    rng = random.Random(0)
    for _ in range(200):
        assert re.findall(r"\d+", roughen(rng, "What are 17 GB of memory plus 25 GB together?")) == [
            "17",
            "25",
        ]


@pytest.mark.parametrize(("value", "text"), [(3.35, "3.35"), (8.0, "8"), (0.00125, "0.0013"), (5300.0, "5300")])
def test_figures_have_no_trailing_zeros(value, text):
    assert number(value) == text


def test_the_score_counts_right_answers_and_valid_json():
    conversations = list(held_out_conversations(46))
    score = score_answers(conversations, [c.exchange.answer for c in conversations])
    assert score.total.right == score.total.exact == 46
    assert score.total.json_valid == score.total.json_asked > 0
    assert "| all | 46 | 100.0% |" in score.table()
    assert score_answers(conversations, ["no"] * 46).total.right == 0
