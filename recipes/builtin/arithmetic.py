"""Small sums and unit conversions, and the two estimates of the roofline: does it fit, how fast can it be."""

from __future__ import annotations

import json

from recipes.builtin.chips import catalogue
from recipes.builtin.exchange import Draw, Exchange, Phrasings, number
from recipes.builtin.facts import AS_JSON, JSON_SYSTEM, names

ADD = Phrasings(
    (
        "(What is|What's|Calculate|Compute|Work out|How much is) {a} + {b}?",
        "(What is|What's|How much is) {a} plus {b}?",
        "{a} + {b}",
        "{a} + {b} = ?",
        "{a}+{b}",
        "(Add|Sum) {a} and {b}.",
        "(What is|What's) the sum of {a} and {b}?",
        "(Can|Could) you add {a} and {b}?",
        "I have {a} (GB|tokens|chips) and get {b} more. How many is that?",
        "Please add {a} and {b}.",
        "If I add {b} to {a}, what do I get?",
        "{a} plus {b}",
        "{a} plus {b} is?",
        "What do you get for {a} + {b}?",
        "The total of {a} and {b}?",
        "How many are {a} and {b}?",
        "What does {a} + {b} give?",
    ),
    ("Tell me what {a} + {b} makes.", "{a} and {b} together are how many?"),
)
SUBTRACT = Phrasings(
    (
        "(What is|What's|Calculate|Compute|How much is) {a} - {b}?",
        "(What is|What's|How much is) {a} minus {b}?",
        "{a} - {b}",
        "{a} - {b} = ?",
        "Subtract {b} from {a}.",
        "Take {b} (away|) from {a}.",
        "I have {a} (GB|tokens|chips) and use {b}. How many are left?",
        "{a} minus {b}",
        "What is the difference between {a} and {b}?",
        "If I take {b} from {a}, what is left?",
        "What remains of {a} minus {b}?",
        "How much more is {a} than {b}?",
        "What does {a} - {b} give?",
    ),
    ("Tell me what {a} - {b} makes.", "What is left of {a} after taking away {b}?"),
)
MULTIPLY = Phrasings(
    (
        "(What is|What's|Calculate|Compute|How much is) {a} (*|x) {b}?",
        "(What is|What's|How much is) {a} times {b}?",
        "{a} * {b}",
        "{a} x {b} = ?",
        "{a}*{b}",
        "Multiply {a} (by|and|with) {b}.",
        "(What is|What's) the product of {a} and {b}?",
        "{a} (chips|servers|racks) with {b} (GB|tokens|W) each: how many (in all|)?",
        "{a} times {b}",
        "{a} multiplied by {b}?",
        "If I have {a} rows of {b}, how many is that?",
        "What do {a} groups of {b} make?",
        "How many are {a} times {b}?",
        "What does {a} * {b} give?",
    ),
    ("Tell me what {a} * {b} makes.", "How many are {a} boxes of {b}?"),
)
CONVERT = Phrasings(
    (
        "(What is|What's|How much is) {x} {from_unit} in {to_unit}?",
        "Convert {x} {from_unit} (to|into) {to_unit}.",
        "{x} {from_unit} (in|to) {to_unit}",
        "{x} {from_unit} in {to_unit}?",
        "How many {to_unit} (is|are|make) {x} {from_unit}?",
        "(Write|Express|Give me) {x} {from_unit} in {to_unit}.",
        "{x} {from_unit} = ? {to_unit}",
        "{x} {from_unit} equals how many {to_unit}?",
        "Turn {x} {from_unit} into {to_unit}.",
        "I need {x} {from_unit} in {to_unit}.",
        "Can you convert {x} {from_unit} to {to_unit}?",
        "If it is {x} {from_unit}, how many {to_unit} is it?",
    ),
    ("I have {x} {from_unit}. What is that in {to_unit}?", "Change {x} {from_unit} into {to_unit}."),
)
MODEL_SIZE = Phrasings(
    (
        "How (big|large) is a {n}B model in {format}?",
        "How (much memory|many GB) does a {n}B model (need|take|use) in {format}?",
        "How (much memory|many GB) do {n} billion parameters (need|take) in {format}?",
        "(What is the size of|What size has) a {n}B model in {format}?",
        "{n}B in {format}: how many GB?",
        "{n}B model {format} size",
        "A {n}B model in {format}: how much memory (is that|do I need)?",
        "How many gigabytes are {n} billion {format} parameters?",
        "My model has {n} billion parameters in {format}. How (big|large) is it?",
        "Weights of a {n}B model in {format}, in GB?",
        "How much memory for {n}B parameters in {format}?",
        "What do {n} billion parameters take up in {format}?",
        "I store a {n}B model in {format}. How many GB is it?",
    ),
    (
        "How much space do the weights of a {n}B {format} model take?",
        "In {format}, how many GB are {n} billion parameters?",
    ),
)
FITS = Phrasings(
    (
        "Does a {n}B model in {format} fit (on|in|into) {it}?",
        "(Can|Will) {it} (hold|fit|run|serve) a {n}B model in {format}?",
        "Is {it} big enough for a {n}B model in {format}?",
        "Will a {n}B model fit on {it} in {format}?",
        "{n}B {format} on {it}: does it fit?",
        "Can I (serve|run|load) a {n}B model in {format} on {it}?",
        "I have {it}. Can I (run|load) a {n}B model in {format}?",
        "Do the weights of a {n}B model in {format} fit on {it}?",
        "Is the memory of {it} enough for {n}B in {format}?",
        "Does {it} have enough memory for a {n}B {format} model?",
        "Could a {n}B model run on {it} in {format}?",
        "Would {n} billion {format} parameters fit into {it}?",
    ),
    (
        "Is there room for a {n}B {format} model on {it}?",
        "I want to put a {n}B model in {format} on {it}. Does it fit?",
    ),
)
TOKENS = Phrasings(
    (
        "How many tokens per second can a chip with {bw} TB/s (do|reach) with a model of {size} GB?",
        "A chip (has|with) {bw} TB/s and the model (has|is) {size} GB. How many tokens per second (is that|)?",
        "A model of {size} GB on a chip with {bw} TB/s: how many tokens/s (at most|)?",
        "(What is|What's) the (highest|best|top) (decode|) speed of a {size} GB model at {bw} TB/s?",
        "How fast can a {size} GB model decode (at|with) {bw} TB/s?",
        "With {bw} TB/s of bandwidth and {size} GB of weights, how many tokens/s (do I get|can I get|are possible)?",
        "Tokens per second for {size} GB at {bw} TB/s?",
        "{size} GB of weights, {bw} TB/s: how many tokens per second?",
        "If a chip reads {bw} TB/s, how many tokens per second (does|can) a {size} GB model (make|get)?",
        "Estimate the tokens/s of a {size} GB model (on|with) {bw} TB/s.",
        "How many tokens/s do I get from {bw} TB/s if the model has {size} GB?",
        "The chip does {bw} TB/s. The model is {size} GB. (Tokens per second|How many tokens/s)?",
        "What token rate does {bw} TB/s allow for {size} GB?",
    ),
    (
        "My weights are {size} GB and my bandwidth is {bw} TB/s. How many tokens/s can I hope for?",
        "At {bw} TB/s, how many tokens per second does a model with {size} GB of weights give?",
    ),
)
TOKEN_TIME = Phrasings(
    (
        "(What is|What's) the (ITL|inter-token latency|time per token) at {rate} tokens/s?",
        "How long does (a|one|each) token take at {rate} tokens (per second|/s)?",
        "How many (ms|milliseconds) (per token is|is|are) {rate} tokens/s?",
        "At {rate} tokens per second, what is the (ITL|time per token)?",
        "{rate} tokens/s in ms per token",
        "A stream runs at {rate} tokens/s. What is its (ITL|time per token)?",
        "{rate} tokens per second: how many ms each?",
        "Convert {rate} tokens/s to ms per token.",
        "With {rate} tokens/s, how long do I wait for a token?",
        "The speed is {rate} tokens/s. How many (ms|milliseconds) does a token take?",
        "How long is a token at {rate} tokens/s?",
    ),
    ("If I get {rate} tokens/s, how many ms is one token?", "Which ITL belongs to {rate} tokens per second?"),
)

BYTES = {"BF16": 2.0, "INT8": 1.0, "INT4": 0.5}
SIZES = (1, 2, 3, 7, 8, 13, 14, 20, 34, 70)
RATES = (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 400, 500, 1000)
UNITS = (  # from, to, factor; the larger unit holds 1000 of the smaller
    ("GB/s", "TB/s", 0.001),
    ("TB/s", "GB/s", 1000.0),
    ("GB", "TB", 0.001),
    ("TB", "GB", 1000.0),
    ("MB", "GB", 0.001),
    ("GB", "MB", 1000.0),
    ("ms", "s", 0.001),
    ("s", "ms", 1000.0),
    ("TFLOP/s", "PFLOP/s", 0.001),
    ("PFLOP/s", "TFLOP/s", 1000.0),
    ("W", "kW", 0.001),
    ("kW", "W", 1000.0),
)


def addition(draw: Draw) -> Exchange:
    """a + b up to 50 each; held out by unordered pair."""
    pairs = [(a, b) for a in range(1, 51) for b in range(1, 51)]
    a, b = draw.combination("add", pairs, lambda p: f"{min(p)}+{max(p)}")
    return _sum(draw, ADD, a, b, "+", a + b)


def subtraction(draw: Draw) -> Exchange:
    """a - b with b < a up to 50."""
    pairs = [(a, b) for a in range(2, 51) for b in range(1, a)]
    a, b = draw.combination("subtract", pairs, lambda p: f"{p[0]}-{p[1]}")
    return _sum(draw, SUBTRACT, a, b, "-", a - b)


def multiplication(draw: Draw) -> Exchange:
    """The table up to 12 and round factors; an ordered pair is held out, its mirror image is taught."""
    table = [(a, b) for a in range(2, 13) for b in range(2, 13)]
    round_factors = [(a, b * 10) for a in range(2, 10) for b in range(2, 10)]
    pairs = table + round_factors
    # An equal pair has no mirror image, and a round factor comes in one order only: these are always taught.
    kept = [p for p in pairs if p[0] >= p[1] or p[1] > 12]
    pool = [p for p in table if p[0] < p[1]] if draw.held_out_combination else pairs
    a, b = draw.combination("multiply", pool, lambda p: f"taught{p}" if p in kept else f"{p[0]}*{p[1]}")
    return _sum(draw, MULTIPLY, a, b, "*", a * b)


def _sum(draw: Draw, phrasings: Phrasings, a: int, b: int, sign: str, result: int) -> Exchange:
    if draw.chance(0.12):
        system = draw.one_of(JSON_SYSTEM) if draw.chance(0.4) else None
        question = draw.phrase(phrasings, a=str(a), b=str(b))
        if system is None:
            question = draw.familiar().phrase(AS_JSON, question=question)
        return Exchange("json", question, json.dumps({"result": result}), (), system=system, json=True)
    question = draw.phrase(phrasings, a=str(a), b=str(b))
    return Exchange("arithmetic", question, f"{a} {sign} {b} = {result}.", (f"= {result}.",))


def conversion(draw: Draw) -> Exchange:
    """Thousands up and down: 3350 GB/s is 3.35 TB/s. Held out by unit and figure."""
    unit_from, unit_to, factor = draw.one_of(UNITS)
    small = [*range(50, 1000, 50), *range(1000, 10000, 100), 1008, 1638, 2039, 2765, 3350]
    figures = [float(x) for x in small] if factor < 1 else [x / 1000 for x in small]
    x = draw.combination("convert", figures, lambda f: f"{unit_from}/{number(f)}")
    question = draw.phrase(CONVERT, x=number(x), from_unit=unit_from, to_unit=unit_to)
    answer = f"{number(x)} {unit_from} is {number(x * factor)} {unit_to}."
    return Exchange("conversion", question, answer, (f" is {number(x * factor)} {unit_to}",))


def model_size(draw: Draw) -> Exchange:
    """Parameters times bytes each."""
    n, form = draw.combination("size", [(n, f) for n in SIZES for f in BYTES], lambda p: f"{p[0]}/{p[1]}")
    question = draw.phrase(MODEL_SIZE, n=str(n), format=form)
    size = number(n * BYTES[form])
    each = "half a byte" if BYTES[form] == 0.5 else "1 byte" if BYTES[form] == 1 else f"{BYTES[form]:.0f} bytes"
    answer = f"{n} billion parameters at {each} each are {size} GB."
    return Exchange("estimate", question, answer, (f"are {size} GB",))


def fits(draw: Draw) -> Exchange:
    """Whether a model's weights fit a chip's memory. Held out by chip, size and format."""
    candidates = [
        (chip, n, form) for chip in catalogue() for n in SIZES[3:] for form in BYTES if n * BYTES[form] != chip.memory
    ]
    chip, n, form = draw.combination("fits", candidates, lambda c: f"{c[0].name}/{c[1]}/{c[2]}")
    question = draw.phrase(FITS, n=str(n), format=form, it=names(draw, chip)["it"])
    need = n * BYTES[form]
    verdict = "it fits" if need < chip.memory else "it does not fit"
    article = "An" if str(n).startswith("8") else "A"
    answer = (
        f"{article} {n}B model in {form} needs {number(need)} GB and the {chip.name} has {chip.memory} GB: {verdict}."
    )
    return Exchange("estimate", question, answer, (f"needs {number(need)} GB", f": {verdict}."))


def tokens_per_second(draw: Draw) -> Exchange:
    """Bandwidth over the model's size, where that comes out even."""
    pairs = [
        (bw, size)
        for bw in range(1, 9)
        for size in (1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 80, 100)
        if bw * 1000 % size == 0
    ]
    bw, size = draw.combination("tokens", pairs, lambda p: f"{p[0]}/{p[1]}")
    question = draw.phrase(TOKENS, bw=str(bw), size=str(size))
    rate = bw * 1000 // size
    answer = (
        f"Each token reads all {size} GB of weights once, and {bw * 1000} GB/s / {size} GB = {rate}: "
        f"at most {rate} tokens/s for one stream."
    )
    return Exchange("estimate", question, answer, (f"at most {rate} tokens/s",))


def token_time(draw: Draw) -> Exchange:
    """1000 ms over the rate. So few that only the wording is held out."""
    rate = draw.one_of(RATES)
    question = draw.phrase(TOKEN_TIME, rate=str(rate))
    answer = f"At {rate} tokens/s a token takes 1000 / {rate} = {number(1000 / rate)} ms."
    return Exchange("estimate", question, answer, (f"= {number(1000 / rate)} ms",))
