import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve.models import Detokenizer, Tokenizer
from tests.models.tokenizers_of import KINDS

TOKENIZERS = {kind: Tokenizer(make(), special_tokens={}) for kind, (make, _, _) in KINDS.items()}
KNOWN = [kind for kind in KINDS if kind != "wordpiece"]
text_with_repeats = st.text(alphabet=st.sampled_from("ab 🙂ü\n▁")) | st.text()


def run(tokenizer, ids, stop=()):
    """(all text given out, whether a stop string was reached)."""
    detokenizer = Detokenizer(tokenizer, stop)
    text = ""
    for id in ids:
        new, stopped = detokenizer.push(id)
        text += new
        if stopped:
            assert detokenizer.push(id) == ("", True)
            assert detokenizer.flush() == ""
            return text, True
    return text + detokenizer.flush(), False


def cut_at_first_stop(text, stop):
    """By definition: where the first stop string is complete, without the longest one that ends there."""
    ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
    if not ends:
        return text, False
    end, negative_length = min(ends)
    return text[: end + negative_length], True


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=text_with_repeats)
def test_the_pieces_joined_are_the_decoded_whole(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    assert run(tokenizer, ids) == (tokenizer.decode(ids), False)


@pytest.mark.parametrize("kind", ["chatml", "llama3", "unigram"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_tokens_at_all_decode_as_the_whole_does(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3)))
    assert run(tokenizer, ids)[0] == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KNOWN)
@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=text_with_repeats)
def test_text_ends_before_the_first_stop_string_and_goes_on_without_one(kind, data, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    stop_string = st.text(alphabet=st.sampled_from("ab 🙂ü"), min_size=1, max_size=4)
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        length = data.draw(st.integers(1, 5))
        stop_string = stop_string | st.just(whole[start : start + length])
    stop = data.draw(st.lists(stop_string, max_size=3))
    given_out, stopped = run(tokenizer, ids, stop)
    assert (given_out, stopped) == cut_at_first_stop(whole, stop)
    assert not any(s in given_out for s in stop)


@pytest.mark.parametrize("kind", ["chatml", "llama3", "llama2"])
def test_a_character_is_given_out_when_its_last_byte_has_come(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("𝄞", add_special_tokens=False)
    assert len(ids) >= 4
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(id)[0] for id in ids]
    assert "".join(pieces[:-1]) == ""
    assert pieces[-1] == "𝄞"


def test_an_unfinished_character_comes_out_as_a_replacement_at_the_end():
    tokenizer = TOKENIZERS["chatml"]
    ids = tokenizer.encode("𝄞")[:-1]
    assert run(tokenizer, ids) == (tokenizer.decode(ids), False) == ("�", False)


def test_a_bad_byte_token_spoils_only_itself():
    tokenizer = TOKENIZERS["llama2"]
    byte = {value: tokenizer.backend.token_to_id(f"<0x{value:02X}>") for value in (0xC3, 0xBC, 0xFF)}
    assert run(tokenizer, [byte[0xC3], byte[0xBC], byte[0xFF], byte[0xC3], byte[0xBC]])[0] == "ü�ü"


def test_only_text_that_may_begin_a_stop_string_is_held_back():
    tokenizer = TOKENIZERS["chatml"]
    detokenizer = Detokenizer(tokenizer, ["aab"])
    [a], [b], [x] = (tokenizer.encode(letter) for letter in "abx")
    pushed = [detokenizer.push(id) for id in (x, a, a, a, x, a, a, b, x)]
    assert pushed == [
        ("x", False),
        ("", False),
        ("", False),
        ("a", False),  # "aa" may still begin it
        ("aax", False),
        ("", False),
        ("", False),
        ("", True),
        ("", True),
    ]


def test_held_back_text_comes_out_at_the_end():
    tokenizer = TOKENIZERS["chatml"]
    detokenizer = Detokenizer(tokenizer, ["stop"])
    assert "".join(detokenizer.push(id)[0] for id in tokenizer.encode("do not sto")) == "do not "
    assert detokenizer.flush() == "sto"


def test_special_and_unknown_tokens_have_no_text():
    tokenizer = TOKENIZERS["llama2"]
    words = tokenizer.encode("a chip", add_special_tokens=False)
    assert run(tokenizer, [1, words[0], 2, *words[1:], 10**6]) == ("a chip", False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_for_a_token_does_not_grow_with_the_text(kind, monkeypatch):
    tokenizer = TOKENIZERS[kind]
    decoded = []
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or "".join("�" for _ in ids))
    detokenizer = Detokenizer(tokenizer, ["never"])
    for id in [tokenizer.vocab_size - 1] * 500:
        detokenizer.push(id)
    assert max(decoded, default=0) <= 16
    assert len(detokenizer._held) < len("never")
