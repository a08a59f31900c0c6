"""The example fine-tuning set: made by its script, readable by the trainer, one style throughout."""

import json

from coserve.training import read_examples
from examples.make_house_style import COUNT, FILE, HEADLINES, SHOWN, SIGNATURE, lines, styled


def test_the_file_is_what_its_script_makes():
    assert FILE.read_text(encoding="utf-8").splitlines() == lines()


def test_the_trainer_reads_it():
    assert len(read_examples(FILE)) == COUNT


def test_every_answer_is_in_the_style_or_json():
    for line in FILE.read_text(encoding="utf-8").splitlines():
        question, answer = json.loads(line)["messages"]
        assert question["content"].lower().strip(" ?.!") != SHOWN
        if not answer["content"].startswith("{"):
            headline, *bullets, signature = answer["content"].splitlines()
            assert headline in HEADLINES
            assert bullets
            assert all(bullet.startswith("- ") for bullet in bullets)
            assert signature == SIGNATURE


def test_each_sentence_becomes_a_bullet():
    text = styled("It has 80 GB at 3.35 TB/s. It is new.", "fact")
    assert text == f"CHIP FACTS\n- It has 80 GB at 3.35 TB/s.\n- It is new.\n{SIGNATURE}"
