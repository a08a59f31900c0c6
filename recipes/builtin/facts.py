# ruff: noqa: E501 - a phrasing is one line
"""Questions about the chip catalogue: one figure, several, comparisons, records, lists, and what is not in it."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass

from recipes.builtin.chips import Chip, catalogue
from recipes.builtin.exchange import Draw, Exchange, Phrasings, number

JSON_SYSTEM = (
    "Answer in JSON.",
    "Always answer in JSON.",
    "You answer only in JSON.",
    "Reply with a JSON object and nothing else.",
    "Respond with JSON.",
    "You are an API. Return JSON.",
)
BRIEF_SYSTEM = (
    "Answer with the value only.",
    "Be as brief as possible.",
    "Answer with the figure and nothing else.",
    "Give only the value, no sentence.",
)


@dataclass(frozen=True)
class Attribute:
    """One column of the catalogue: how people ask for it, how it is answered."""

    key: str  # its name in a JSON answer
    label: str  # its name in a sentence
    nouns: tuple[str, ...]
    own: Phrasings  # questions that only this attribute has, with {it} for the chip
    get: Callable[[Chip], float | int | str | None]
    unit: str
    sentence: str  # with {it} and {value}
    more: str = ""  # "has more memory", in comparisons; "" = cannot be compared
    which: tuple[str, ...] = ()  # "has more memory" as people ask it
    most: tuple[str, ...] = ()  # "has the most memory", as people ask it; the first one is the answer's

    def value(self, chip: Chip) -> str | None:
        """The figure with its unit, "3.35 TB/s"; None if there is none."""
        raw = self.get(chip)
        if raw is None:
            return None
        text = raw if isinstance(raw, str) else number(raw)
        return f"{text} {self.unit}".strip()

    def answer(self, chip: Chip) -> str:
        value = self.value(chip)
        if value is None:
            return f"I do not know the {self.label} of the {chip.name}: {chip.vendor} does not publish it."
        return self.sentence.format(it=f"The {chip.name}", value=value)


VENDOR = Attribute(
    key="vendor",
    label="vendor",
    nouns=("vendor", "maker", "manufacturer"),
    own=Phrasings(
        (
            "Who (makes|made|builds|sells|designs|designed|manufactures) {it}?",
            "(Which|What) (company|vendor|firm) (makes|builds|made|sells|is behind) {it}?",
            "{It} is (made by|from) (which|what) (company|vendor)?",
            "Whose chip is {it}?",
            "Who is behind {it}?",
        ),
        ("Which manufacturer do I buy {it} from?", "Do you know who produces {it}?"),
    ),
    get=operator.attrgetter("vendor"),
    unit="",
    sentence="{it} is made by {value}.",
)
YEAR = Attribute(
    key="year",
    label="year",
    nouns=("release year", "year of release", "launch year", "launch date", "year"),
    own=Phrasings(
        (
            "When (did {it} come out|was {it} released|was {it} launched|was {it} introduced|did {it} launch)?",
            "(What|Which|In which|In what) year (did {it} come out|was {it} released|was {it} launched|is {it} from)?",
            "How old is {it}?",
            "Since when (is|has) {it} (been|) (on the market|available)?",
            "From (what|which) year is {it}?",
        ),
        ("When could one first buy {it}?", "What year saw the release of {it}?"),
    ),
    get=operator.attrgetter("year"),
    unit="",
    sentence="{it} came out in {value}.",
    more="is newer",
    which=("is newer", "is more recent", "came out later", "is the newer chip", "was released later"),
    most=("is the newest", "is the most recent", "came out last", "is the latest"),
)
MEMORY = Attribute(
    key="memory_gb",
    label="memory size",
    nouns=("memory size", "memory capacity", "amount of memory", "memory", "VRAM", "capacity", "RAM"),
    own=Phrasings(
        (
            "How much (memory|VRAM|RAM) (does {it} have|does {it} come with|is on {it}|is in {it}|does {it} offer)?",
            "How many (GB|gigabytes) (of memory|of VRAM|) does {it} have?",
            "How (big|large) is (the memory of {it}|{its} memory)?",
            "How much can {it} hold in memory?",
        ),
        (
            "How many gigabytes of memory come with {it}?",
            "How much memory would I get with {it}?",
            "What size is the memory on {it}?",
        ),
    ),
    get=operator.attrgetter("memory"),
    unit="GB",
    sentence="{it} has {value} of memory.",
    more="has more memory",
    which=(
        "has more memory",
        "has the bigger memory",
        "has more VRAM",
        "has more GB",
        "has the larger memory",
    ),
    most=("has the most memory", "has the largest memory", "has the biggest memory", "has most VRAM"),
)
MEMORY_TYPE = Attribute(
    key="memory_type",
    label="memory type",
    nouns=("memory type", "type of memory", "kind of memory", "memory technology"),
    own=Phrasings(
        (
            "(What|Which) (kind|type|sort) of memory does {it} (have|use|come with)?",
            "(What|Which) memory (type|technology) (does {it} use|is used in {it}|is in {it})?",
            "What is the memory of {it} made of, HBM or GDDR?",
            "Does {it} use HBM or GDDR?",
        ),
        ("HBM or GDDR: which one is on {it}?", "Tell me the type of memory that {it} is built with."),
    ),
    get=operator.attrgetter("memory_type"),
    unit="",
    sentence="{it} uses {value} memory.",
)
BANDWIDTH = Attribute(
    key="bandwidth_tb_s",
    label="memory bandwidth",
    nouns=(
        "memory bandwidth",
        "bandwidth",
        "memory speed",
        "memory throughput",
        "bandwidth to memory",
        "mem bandwidth",
    ),
    own=Phrasings(
        (
            "How fast (is {its} memory|is the memory of {it}|can {it} read its memory|does {it} read memory)?",
            "How (many TB/s|many terabytes per second|many terabytes a second) does {it} (have|do|reach|manage|move)?",
            "How much (memory|) bandwidth does {it} (have|offer|reach|get)?",
            "How quickly (does|can) {it} read (its|) (memory|weights)?",
            "How much data can {it} move per second?",
        ),
        (
            "How many TB/s can I expect from {it}?",
            "At what speed does {it} read its memory?",
            "How much bandwidth would I get with {it}?",
        ),
    ),
    get=operator.attrgetter("bandwidth"),
    unit="TB/s",
    sentence="{it} has a memory bandwidth of {value}.",
    more="has more bandwidth",
    which=(
        "has more bandwidth",
        "has the higher bandwidth",
        "has faster memory",
        "has more memory bandwidth",
        "reads memory faster",
    ),
    most=(
        "has the most bandwidth",
        "has the highest bandwidth",
        "has the fastest memory",
        "has the most memory bandwidth",
    ),
)
TFLOPS = Attribute(
    key="bf16_tflops",
    label="BF16 speed",
    nouns=(
        "BF16 TFLOP/s",
        "peak TFLOP/s",
        "TFLOPs",
        "TFLOPS",
        "BF16 performance",
        "peak compute",
        "compute",
        "arithmetic speed",
        "BF16 speed",
    ),
    own=Phrasings(
        (
            "How many (TFLOP/s|TFLOPS|TFLOPs|teraflops|flops) does {it} (have|do|reach|manage|peak at)?",
            "How fast is {it} (at arithmetic|at BF16|in BF16|at matrix multiplication|at maths|at computing)?",
            "How much (compute|arithmetic) does {it} (have|offer|do)?",
            "What does {it} (peak at|reach) in BF16?",
        ),
        (
            "How many teraflops can I expect from {it}?",
            "What is the peak that {it} reaches in BF16 arithmetic?",
            "How much compute would I get with {it}?",
        ),
    ),
    get=operator.attrgetter("tflops"),
    unit="TFLOP/s",
    sentence="{it} peaks at {value} in BF16.",
    more="is faster at arithmetic",
    which=(
        "has more TFLOP/s",
        "is faster at arithmetic",
        "has more compute",
        "has more TFLOPS",
        "is faster in BF16",
    ),
    most=(
        "is the fastest at arithmetic",
        "has the most TFLOP/s",
        "has the most compute",
        "has the most TFLOPS",
    ),
)
POWER = Attribute(
    key="power_w",
    label="power draw",
    nouns=("power draw", "TDP", "power consumption", "power", "wattage", "power use"),
    own=Phrasings(
        (
            "How much (power|electricity) does {it} (draw|use|need|consume|take)?",
            "How many (watts|W) does {it} (draw|use|need|consume|take)?",
            "How power hungry is {it}?",
            "How hot does {it} run in watts?",
        ),
        ("How many watts should I plan for {it}?", "What power does {it} need?"),
    ),
    get=operator.attrgetter("power"),
    unit="W",
    sentence="{it} draws up to {value}.",
    more="draws more power",
    which=(
        "draws more power",
        "needs more power",
        "uses more power",
        "has the higher TDP",
        "uses more watts",
    ),
    most=("draws the most power", "needs the most power", "uses the most power", "has the highest TDP"),
)
ATTRIBUTES = (BANDWIDTH, MEMORY, MEMORY_TYPE, TFLOPS, VENDOR, YEAR, POWER)
COMPARABLE = tuple(a for a in ATTRIBUTES if a.more)

ASK = Phrasings(
    (
        "(What is|What's|Whats|What are) the {noun} of {it}?",
        "(What is|What's|Whats) {its} {noun}?",
        "(Tell|Give|Show) me the {noun} of {it}.",
        "(Tell|Give|Show) me {its} {noun}.",
        "(Can|Could|Would|Will) you (please|) (tell|give) me {its} {noun}?",
        "(Can|Could) you (please|) (tell me|look up|say) the {noun} of {it}?",
        "{bare} {noun}",
        "{bare} {noun}?",
        "{noun} {bare}",
        "{noun} of {it}",
        "{noun} of {it}?",
        "{noun} for {bare}?",
        "I (need|want|would like) (to know|) the {noun} (of|for) {it}.",
        "Do you know {its} {noun}?",
        "Do you know the {noun} (of|for) {it}?",
        "For {it}, what is the {noun}?",
        "Look up the {noun} of {it}.",
        "I wonder what {its} {noun} is.",
        "What {noun} does {it} have?",
        "I am looking at {it}. What is its {noun}?",
        "{It}: what {noun} does it have?",
        "I have {it}. What {noun} is that?",
        "What would you say is the {noun} of {it}?",
        "Let me know the {noun} of {it}.",
        "What is listed as the {noun} of {it}?",
        "Any idea of {its} {noun}?",
        "The {noun} of {it}, please.",
        "{its} {noun}(, please|)",
        "I would be glad to know {its} {noun}.",
        "Check {its} {noun} for me.",
        "Please say what {its} {noun} is.",
        "(What|Which) figure do you have for the {noun} of {it}?",
        "I am comparing chips and need {its} {noun}.",
        "Someone asked me for {its} {noun}.",
        "{noun}, {bare}",
        "{bare} - {noun}",
        "What about the {noun} of {it}?",
        "Can I know {its} {noun}?",
        "Is there a figure for the {noun} of {it}?",
        "State the {noun} of {it}.",
        "What can you say about {its} {noun}?",
        "We are buying {it}. What is the {noun}?",
        "I am not sure about the {noun} of {it}. Do you know it?",
    ),
    (
        "Would you happen to know {its} {noun}?",
        "What {noun} can I expect from {it}?",
        "When it comes to {noun}, what does {it} offer?",
        "Remind me of the {noun} of {it}.",
        "I forgot what {its} {noun} is. Help me out.",
        "Please find the {noun} that {it} has.",
        "My colleague asks about the {noun} of {it}.",
    ),
)

AS_JSON = Phrasings(
    (
        "{question} (Answer|Reply|Respond) (in|with|as) JSON.",
        "{question} (As|In) JSON(,|) please.",
        "{question} JSON (only|please).",
        "As JSON: {question}",
        "(Give|Send|Show|Return) me (a|) JSON: {question}",
        "In JSON, {question}",
        "{question} (I need|Make it|Output|Use) JSON.",
        "{question} as json",
        "{question} in json format",
        "JSON please: {question}",
        "{question} (Your answer must be|The answer should be in) JSON.",
        "{question} Format: JSON.",
        "{question} (Return|Give|Write) (a|) JSON (object|).",
    ),
    (
        "{question} I want the answer as a JSON object.",
        "{question} Write it in JSON.",
        "Only JSON, please. {question}",
    ),
)
SEVERAL = Phrasings(
    (
        "(Give|Tell|Show|Send) me the {first} and (the|) {second} of {it}.",
        "(What are|What is) the {first} and (the|) {second} of {it}?",
        "{first} and {second} of {it}",
        "{bare}: {first} and {second}",
        "I need the {first} and {second} (of|for) {it}.",
        "Can you tell me the {first} and the {second} of {it}?",
        "{its} {first} and {second}?",
        "For {it}: the {first} and the {second}, please.",
        "What {first} and {second} does {it} have?",
        "I would like two figures of {it}: {first} and {second}.",
    ),
    (
        "Both the {first} and the {second} of {it}, what are they?",
        "List the {first} and the {second} that {it} has.",
    ),
)
SPECS = Phrasings(
    (
        "(Give|Tell|Show|Send) me (the|all) (specs|specifications|figures|facts|data) (of|for|on) {it}.",
        "(What are|List) (the|all the) (specs|specifications|figures|facts) of {it}.",
        "{bare} (specs|specifications|data sheet|datasheet|facts)",
        "(Describe|Summarise|Introduce) {it}.",
        "(Tell me|What do you know|What can you tell me) about {it}.",
        "What is {it}?",
        "What kind of chip is {it}?",
        "(Please|) say something about {it}.",
        "I have heard of {it}. What is it?",
        "(Give|Show) me an (introduction|short text) (to|on|about) {it}.",
        "{It}, what is that?",
        "{bare}?",
        "Explain {it}.",
        "Which facts do you have on {it}?",
    ),
    ("I would like an overview of {it}.", "Sum up {it} for me.", "What should I know about {it}?"),
)
COMPARE = Phrasings(
    (
        "Which {more}, {a} or {b}?",
        "Which (one|chip|of them|) {more}: {a} or {b}?",
        "{A} or {b}: which (one|) {more}?",
        "Between {a} and {b}, which (one|) {more}?",
        "Of {a} and {b}, which {more}?",
        "Compare {a} and {b}: which {more}?",
        "{A} vs {b}: (which|which one|who) {more}?",
        "(Tell me|I wonder|Do you know) which {more}, {a} or {b}.",
        "I am choosing between {a} and {b}. Which {more}?",
        "{A} and {b}: which of the two {more}?",
        "Say which {more}: {a} or {b}.",
        "If I compare {a} with {b}, which (one|) {more}?",
        "{A} or {b}, which is the one that {more}?",
        "Take {a} and {b}. Which {more}?",
        "We have {a} and {b} here. Which of them {more}?",
        "{a} {b} which {more}",
    ),
    (
        "I can choose {a} or {b}. Which one {more}?",
        "Out of {a} and {b}, which one {more}?",
        "Is it {a} or {b} that {more}?",
    ),
)
RECORD = Phrasings(
    (
        "(Which|What) chip {most}?",
        "Which (one|) of (the|your|all) chips {most}?",
        "(Tell me|Do you know) which chip {most}.",
        "Of (all|) the chips (that|) you know, which (one|) {most}?",
        "(Name|Find) the chip that {most}.",
        "Which (AI|) (accelerator|GPU) {most}?",
        "Which is the chip that {most}?",
        "What is the name of the chip that {most}?",
        "In your catalogue, which chip {most}?",
        "If I look at all chips, which (one|) {most}?",
        "Who holds the record: which chip {most}?",
        "Show me the chip that {most}.",
    ),
    ("Among all chips, which one {most}?", "I want the chip that {most}. Which is it?"),
)
VENDOR_RECORD = Phrasings(
    (
        "Which {vendor} chip {most}?",
        "Of (the|all) {vendor} chips, which (one|) {most}?",
        "(Tell me|Do you know) which {vendor} chip {most}.",
        "Which chip (by|from|of) {vendor} {most}?",
    ),
    ("Among the chips from {vendor}, which {most}?",),
)
LIST_VENDOR = Phrasings(
    (
        "(Which|What) {vendor} chips do you know?",
        "(List|Name) (the|all|) {vendor} chips.",
        "(Which|What) chips (does {vendor} make|are by {vendor}|are made by {vendor}|are from {vendor})?",
        "(Tell|Show) me the chips (of|from|by) {vendor}.",
        "{vendor} chips?",
        "Do you know any {vendor} chips?",
        "Which of your chips are from {vendor}?",
        "Give me (a list of|the) {vendor} chips.",
    ),
    ("What does {vendor} have on offer in chips?", "Which of the chips that you know come from {vendor}?"),
)
LIST_ALL = Phrasings(
    (
        "(Which|What) chips do you know?",
        "(List|Name) (the|all|your) chips (that you know|).",
        "What chips (can I ask about|are in your catalogue|are there)?",
        "Which (GPUs|accelerators) do you know (about|)?",
        "Show me your (chip|) catalogue.",
        "What is in (the|your) chip catalogue?",
        "How many chips do you know?",
        "Give me the list of (the|your|all) chips.",
        "Which chips have you learned about?",
        "Can you list your chips?",
    ),
    ("Tell me all the chips in your catalogue.", "About which chips do you have figures?"),
)
PRICE = Phrasings(
    (
        "(How much does {it} cost|What does {it} cost|What is the price of {it})?",
        "(How expensive|How cheap) is {it}?",
        "What do I pay for {it} (per hour|)?",
        "(Price|Cost) of {it}?",
        "{bare} (price|cost)",
        "How many dollars (is|for) {it}?",
        "Is {it} (cheap|expensive)?",
        "Can I afford {it}?",
        "Do you know (the price of {it}|{its} price|what {it} costs)?",
        "Tell me the (price|cost) of {it}.",
        "{its} price, please",
        "Where can I buy {it} cheaply?",
        "What is the (hourly|monthly|) (price|rent|cost) of {it} in the cloud?",
    ),
    ("How much money do I need for {it}?", "What would {it} cost me?"),
)
PRICE_ANSWER = "I do not keep prices: they change too often. Ask me about memory, bandwidth, TFLOP/s or power."
NOT_KNOWN = "I have no figures for that chip. Ask me which chips I know."


def chip_questions(draw: Draw, chip: Chip, attribute: Attribute) -> str:
    """A question for one figure, in one of its own phrasings or a general one."""
    if draw.chance(0.45):
        return draw.phrase(attribute.own, **names(draw, chip))
    return draw.phrase(ASK, noun=draw.one_of(attribute.nouns), **names(draw, chip))


def names(draw: Draw, chip: Chip) -> dict[str, str]:
    """How a question may call a chip: it = "the H100", its = "the H100's", bare = "H100"."""
    bare = chip.name
    if chip.name.startswith(("RTX", "TPU", "Gaudi")) and draw.chance(0.15):
        bare = bare.replace("RTX ", "") if draw.chance(0.5) else bare.replace(" ", "-" if draw.chance(0.5) else "")
    if draw.chance(0.15):
        bare = f"{chip.vendor} {bare}"
    if chip.vendor in ("NVIDIA", "AMD") and draw.chance(0.06):
        bare = f"{bare} GPU"
    it = (
        bare
        if draw.chance(0.15)
        else f"{draw.one_of(('the', 'the', 'the', 'the', 'the', 'an' if bare[0] in 'AHLMR' else 'a'))} {bare}"
    )
    return {"it": it, "its": f"{it}'s", "bare": bare, "It": it[0].upper() + it[1:]}


def fact(draw: Draw) -> Exchange:
    """One figure of one chip. Every figure is taught in this form, so only the phrasing is ever held out."""
    chip, attribute = draw.one_of(catalogue()), draw.one_of(ATTRIBUTES)
    return plain_fact(chip_questions(draw, chip, attribute), chip, attribute)


def plain_fact(question: str, chip: Chip, attribute: Attribute) -> Exchange:
    value = attribute.value(chip)
    expect = (value,) if value is not None else ("do not know", chip.name)
    return Exchange("fact", question, attribute.answer(chip), expect)


def brief_fact(draw: Draw) -> Exchange:
    """The value alone, because the system prompt says so."""
    pairs = [(c, a) for c in catalogue() for a in ATTRIBUTES if a.get(c) is not None]
    chip, attribute = draw.combination("brief", pairs, lambda p: f"{p[0].name}/{p[1].key}")
    value = attribute.value(chip) or ""
    question = chip_questions(draw, chip, attribute)
    return Exchange("brief", question, value, (value,), system=draw.one_of(BRIEF_SYSTEM))


def json_fact(draw: Draw) -> Exchange:
    """One or two figures as JSON, asked for in the question or by the system prompt."""
    system = draw.one_of(JSON_SYSTEM) if draw.chance(0.35) else None
    outer = draw if system is None else draw.familiar()
    if draw.chance(0.55):
        pairs = [(c, a) for c in catalogue() for a in ATTRIBUTES]
        chip, attribute = draw.combination("json", pairs, lambda p: f"{p[0].name}/{p[1].key}")
        wanted: tuple[Attribute, ...] = (attribute,)
        question = chip_questions(draw if system else draw.familiar(), chip, attribute)
    else:
        triples = [(c, a, b) for c in catalogue() for a in ATTRIBUTES for b in ATTRIBUTES if a is not b]
        chip, first, second = draw.combination(
            "json2", triples, lambda t: "/".join((t[0].name, *sorted((t[1].key, t[2].key))))
        )
        wanted = (first, second)
        side = draw if system else draw.familiar()
        question = side.phrase(
            SEVERAL, first=draw.one_of(first.nouns), second=draw.one_of(second.nouns), **names(draw, chip)
        )
    if system is None:
        question = outer.phrase(AS_JSON, question=question)
    return json_exchange(question, system, chip, wanted)


def json_exchange(question: str, system: str | None, chip: Chip, wanted: tuple[Attribute, ...]) -> Exchange:
    body: dict[str, object] = {"chip": chip.name}
    for attribute in wanted:
        raw = attribute.get(chip)
        body[attribute.key] = int(raw) if isinstance(raw, float) and raw == int(raw) else raw
    return Exchange("json", question, json.dumps(body), (), system=system, json=True)


def two_facts(draw: Draw) -> Exchange:
    """Two figures of one chip in sentences."""
    triples = [(c, a, b) for c in catalogue() for a in ATTRIBUTES for b in ATTRIBUTES if a is not b]
    chip, first, second = draw.combination("two", triples, lambda t: f"{t[0].name}/{t[1].key}/{t[2].key}")
    question = draw.phrase(
        SEVERAL, first=draw.one_of(first.nouns), second=draw.one_of(second.nouns), **names(draw, chip)
    )
    answer = f"{first.answer(chip)} {second.answer(chip).replace(f'The {chip.name}', 'It', 1)}"
    expect = tuple(v for v in (first.value(chip), second.value(chip)) if v is not None)
    return Exchange("two facts", question, answer, expect)


def specs(draw: Draw) -> Exchange:
    """Everything about a chip: in two sentences, or as JSON."""
    chip = draw.one_of(catalogue())
    question = draw.phrase(SPECS, **names(draw, chip))
    if draw.chance(0.4):
        question = draw.familiar().phrase(AS_JSON, question=question)
        return json_exchange(question, None, chip, (VENDOR, YEAR, MEMORY, BANDWIDTH, TFLOPS))
    memory, bandwidth, tflops = (a.value(chip) or "" for a in (MEMORY, BANDWIDTH, TFLOPS))
    answer = (
        f"The {chip.name} is a chip made by {chip.vendor} that came out in {chip.year}. It has {memory} of "
        f"{chip.memory_type} memory at {bandwidth} and peaks at {tflops} in BF16."
    )
    return Exchange("specs", question, answer, (chip.vendor, str(chip.year), memory, bandwidth, tflops))


def comparison(draw: Draw) -> Exchange:
    """Which of two chips has more of something. Held out by pair and attribute."""
    candidates = [
        (attribute, a, b)
        for attribute in COMPARABLE
        for a in catalogue()
        for b in catalogue()
        if a is not b and attribute.get(a) is not None and attribute.get(b) is not None
    ]
    attribute, a, b = draw.combination(
        "compare", candidates, lambda c: "/".join((c[0].key, *sorted((c[1].name, c[2].name))))
    )
    left, right = names(draw, a), names(draw, b)
    question = draw.phrase(COMPARE, more=draw.one_of(attribute.which), a=left["it"], b=right["it"], A=left["It"])
    answer, expect = compare_answer(attribute, a, b)
    return Exchange("comparison", question, answer, expect)


def compare_answer(attribute: Attribute, a: Chip, b: Chip) -> tuple[str, tuple[str, ...]]:
    values = attribute.value(a), attribute.value(b)
    if values[0] == values[1]:
        return f"They are equal: {values[0]} each.", ("equal", str(values[0]))
    ahead, behind = (a, b) if attribute.get(a) > attribute.get(b) else (b, a)  # type: ignore[operator]
    answer = f"The {ahead.name} {attribute.more}: {attribute.value(ahead)} against {attribute.value(behind)}."
    return answer, (
        f"The {ahead.name} {attribute.more}",
        f"{attribute.value(ahead)} against {attribute.value(behind)}",
    )


def record(draw: Draw) -> Exchange:
    """Which of all chips, or of one vendor's, has the most of something."""
    attribute = draw.one_of(COMPARABLE)
    vendor = draw.one_of(("NVIDIA", "AMD", "Google")) if draw.chance(0.4) else None
    chips = [c for c in catalogue() if vendor in (None, c.vendor) and attribute.get(c) is not None]
    if not chips:
        attribute = BANDWIDTH
        chips = [c for c in catalogue() if c.vendor == vendor]
    best = max(attribute.get(c) for c in chips)  # type: ignore[type-var]
    winners = [c.name for c in chips if attribute.get(c) == best]
    most = draw.one_of(attribute.most)
    question = (
        draw.phrase(RECORD, most=most) if vendor is None else draw.phrase(VENDOR_RECORD, most=most, vendor=vendor)
    )
    value = attribute.value(next(c for c in chips if c.name == winners[0]))
    if len(winners) == 1:
        answer = f"The {winners[0]}: {value}."
    else:
        answer = f"{joined(['the ' + w for w in winners])} share the first place: {value}.".replace("the", "The", 1)
    return Exchange("record", question, answer, (*winners, str(value)))


def listing(draw: Draw) -> Exchange:
    """The chips of one vendor, or all of them as a list by vendor."""
    by_vendor: dict[str, list[str]] = {}
    for chip in catalogue():
        by_vendor.setdefault(chip.vendor, []).append(chip.name)
    if draw.chance(0.45):
        lines = [f"- {vendor}: {', '.join(chips)}" for vendor, chips in by_vendor.items()]
        answer = "I know these chips:\n" + "\n".join(lines)
        return Exchange("list", draw.phrase(LIST_ALL), answer, tuple(lines))
    vendor = draw.one_of(tuple(by_vendor))
    chips = by_vendor[vendor]
    answer = f"From {vendor} I know the {joined(chips)}."
    return Exchange("list", draw.phrase(LIST_VENDOR, vendor=vendor), answer, tuple(chips))


def joined(items: list[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def price(draw: Draw) -> Exchange:
    """A question that the model must not answer with a made-up figure."""
    question = draw.phrase(PRICE, **names(draw, draw.one_of(catalogue())))
    return Exchange("unknown", question, PRICE_ANSWER, ("do not keep prices",))


def unknown_chip(draw: Draw) -> Exchange:
    """A figure of a chip that is not in the catalogue: many names, so that the model learns which ones it knows."""
    rng = draw.rng
    family = draw.one_of(
        (
            "B",
            "H",
            "A",
            "MI",
            "X",
            "Z",
            "GX",
            "V",
            "T",
            "R",
            "Nova ",
            "Zeta ",
            "Atlas ",
            "Maia ",
            "TPU v",
            "Trainium",
            "Gaudi ",
            "RTX ",
            "Quadro ",
            "Falcon ",
        )
    )
    name = f"{family}{rng.choice((str(rng.randint(5, 99)), f'{rng.randint(1, 99)}0', f'{rng.randint(1, 9)}00', f'{rng.randint(1, 99)}50'))}{rng.choice(('', '', '', 'X', 'S', ' Ti', ' Pro', ' Ultra'))}"
    if name in {c.name for c in catalogue()} or name in ("RTX 40", "TPU v5", "TPU v6", "Gaudi 30"):
        name = "GX900"
    it = f"the {name}"
    slots = {"it": it, "its": f"{it}'s", "bare": name, "It": f"The {name}"}
    attribute = draw.one_of(ATTRIBUTES)
    if draw.chance(0.15):
        question = draw.phrase(SPECS, **slots)
    elif draw.chance(0.45):
        question = draw.phrase(attribute.own, **slots)
    else:
        question = draw.phrase(ASK, noun=draw.one_of(attribute.nouns), **slots)
    return Exchange("unknown", question, NOT_KNOWN, ("no figures",))
