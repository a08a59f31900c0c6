import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from coserve.errors import InvalidRequest, ModelError
from coserve.models import Tokenizer
from tests.models.tokenizers_of import KINDS, LLAMA3, TOOLS, save
from tests.tiny import CHAT_TEMPLATE, write_json

CONVERSATION = [
    {"role": "user", "content": "What is the bandwidth of this chip?"},
    {"role": "assistant", "content": "It is 40 GB/s. 🙂 <b>你好</b>"},
    {"role": "user", "content": "  Grüße\n\taus Köln \n"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Per kind: ours and the one of `transformers`, from the same directory."""
    directories = {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    return {
        kind: (Tokenizer.from_directory(path), PreTrainedTokenizerFast.from_pretrained(path))
        for kind, path in directories.items()
    }


def both(directory):
    return Tokenizer.from_directory(directory), PreTrainedTokenizerFast.from_pretrained(directory)


def rendered_by(theirs, messages, **arguments):
    return theirs.apply_chat_template(messages, tokenize=False, **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
@settings(max_examples=40, deadline=None)
@given(text=st.text())
def test_encode_and_decode_are_those_of_transformers(saved, kind, add_special_tokens, text):
    ours, theirs = saved[kind]
    ids = ours.encode(text, add_special_tokens=add_special_tokens)
    assert ids == theirs.encode(text, add_special_tokens=add_special_tokens)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["chatml", "llama3", "llama2"])
@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_the_tokens_bytes_joined_are_the_text(saved, kind, text):
    ours, _ = saved[kind]
    joined = b"".join(ours.token_bytes(id) for id in ours.encode(text, add_special_tokens=False)).decode()
    if kind == "llama2" and text:
        joined = joined.removeprefix(" ")
    assert joined == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_conversation_becomes_the_tokens_that_transformers_makes_of_it(saved, kind, add_generation_prompt):
    ours, theirs = saved[kind]
    options = {"add_generation_prompt": add_generation_prompt}
    assert ours.render_chat(CONVERSATION, **options) == rendered_by(theirs, CONVERSATION, **options)
    expected = theirs.apply_chat_template(CONVERSATION, return_dict=False, **options)
    assert ours.apply_chat_template(CONVERSATION, **options) == expected


def test_a_template_has_its_tools_loop_controls_json_dates_and_options(tmp_path):
    ours, theirs = both(save(tmp_path, "chatml", chat_template=TOOLS))
    call = {"type": "function", "function": {"name": "würfel", "arguments": {"n": "<6>"}}}
    messages = [
        SYSTEM,
        {"role": "user", "content": "Roll & tell", "name": None},
        {"role": "assistant", "content": "", "reasoning": "a die", "tool_calls": [call]},
    ]
    tools = [{"type": "function", "function": {"name": "würfel", "parameters": {"a": ["<b>", 1]}}}]
    text = ours.render_chat(messages, tools=tools, enable_thinking=False)
    assert text == rendered_by(theirs, messages, tools=tools, enable_thinking=False, add_generation_prompt=True)
    assert "<think>a die</think>" in text
    assert "würfel" in text
    assert "<b>" in text
    assert ours.render_chat(messages) == rendered_by(theirs, messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "me first"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "text", "text": "parts"}]}],
        [{"role": "user", "content": 3}],
        [],
        ["hello"],
        [None],
    ],
)
def test_messages_that_the_template_refuses_are_an_invalid_request(saved, messages):
    ours, _ = saved["llama2"]
    with pytest.raises(InvalidRequest) as raised:
        ours.apply_chat_template(messages)
    assert raised.value.param == "messages"


def test_the_templates_own_words_are_in_the_refusal(saved):
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        saved["llama2"][0].render_chat([{"role": "assistant", "content": "me first"}])


def test_without_a_template_a_conversation_is_refused(tmp_path):
    ours = Tokenizer.from_directory(save(tmp_path, "chatml", chat_template=None))
    assert not ours.has_chat_template
    with pytest.raises(InvalidRequest, match="has no chat template") as raised:
        ours.render_chat(CONVERSATION)
    assert raised.value.param == "messages"


def test_a_broken_template_is_the_models_fault(tmp_path):
    ours = Tokenizer.from_directory(save(tmp_path, "chatml", chat_template="{% for %}"))
    with pytest.raises(ModelError, match="chat template is broken at line 1"):
        ours.render_chat(CONVERSATION)


@pytest.mark.parametrize("escape", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_its_sandbox(tmp_path, escape):
    ours = Tokenizer.from_directory(save(tmp_path, "chatml", chat_template=escape))
    with pytest.raises(InvalidRequest):
        ours.render_chat(CONVERSATION)


def test_a_template_file_wins_over_the_configuration(tmp_path):
    save(tmp_path, "chatml", chat_template="from the configuration")
    (tmp_path / "chat_template.jinja").write_text("from the file")
    ours, theirs = both(tmp_path)
    assert ours.render_chat(CONVERSATION) == rendered_by(theirs, CONVERSATION) == "from the file"


def test_a_template_may_be_in_chat_template_json(tmp_path):
    save(tmp_path, "chatml", chat_template=None)
    write_json(tmp_path / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    assert "<|im_start|>user\n" in Tokenizer.from_directory(tmp_path).render_chat(CONVERSATION)


def test_of_named_templates_the_one_for_tools_is_used_when_there_are_tools(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    ours, theirs = both(save(tmp_path, "chatml", chat_template=named))
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert ours.render_chat(CONVERSATION) == rendered_by(theirs, CONVERSATION) == "plain"
    assert ours.render_chat(CONVERSATION, tools=tools) == rendered_by(theirs, CONVERSATION, tools=tools)
    assert ours.render_chat(CONVERSATION, tools=tools) == "tools"


def test_special_tokens_may_be_objects_and_may_be_in_their_own_file(tmp_path):
    eos = {"__type": "AddedToken", "content": "<|eot_id|>", "special": True}
    save(tmp_path, "llama3", eos_token=eos, chat_template=LLAMA3)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["bos_token"]
    write_json(tmp_path / "tokenizer_config.json", config)
    write_json(tmp_path / "special_tokens_map.json", {"bos_token": {"content": "<|begin_of_text|>"}})
    ours = Tokenizer.from_directory(tmp_path)
    assert ours.bos_token_id == 0
    assert ours.eos_token_ids == {1}
    assert ours.render_chat(CONVERSATION).startswith("<|begin_of_text|>")


def test_eos_ids_come_from_all_files_that_name_some(tmp_path):
    save(tmp_path, "chatml")
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, 6]})
    write_json(tmp_path / "config.json", {"eos_token_id": 7})
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == {2, 5, 6, 7}
    write_json(tmp_path / "config.json", {"eos_token_id": "</s>"})
    with pytest.raises(ModelError, match=r"config\.json: eos_token_id must be a token id"):
        Tokenizer.from_directory(tmp_path)


def test_an_ordinary_token_that_is_named_special_is_one_and_is_not_printed(tmp_path):
    ours, theirs = both(save(tmp_path, "chatml", pad_token="x"))
    ids = ours.encode("for x chips")
    assert ids == theirs.encode("for x chips")
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "for  chips"


def test_tokens_that_only_the_configuration_lists_are_added(tmp_path):
    id = KINDS["chatml"][0]().get_vocab_size()
    listed = {str(id): {"content": "<tool>", "special": False, "normalized": False}}
    ours, theirs = both(save(tmp_path, "chatml", added_tokens_decoder=listed))
    assert ours.encode("a<tool>b") == theirs.encode("a<tool>b")
    assert id in ours.encode("a<tool>b")
    assert ours.vocab_size == id + 1


def test_truncation_and_padding_in_the_file_do_not_touch_a_prompt(tmp_path):
    save(tmp_path, "chatml")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    write_json(tmp_path / "tokenizer.json", content)
    ours = Tokenizer.from_directory(tmp_path)
    assert ours.decode(ours.encode("a rather long text")) == "a rather long text"


def test_token_text_shows_spaces_special_tokens_and_parts_of_characters(saved):
    for kind in ("llama2", "unigram", "chatml"):
        ours, _ = saved[kind]
        assert [ours.token_text(id) for id in ours.encode("a chip")][-1][-1] == "p"
        assert "".join(ours.token_text(id) for id in ours.encode("a the chip")).endswith(" the chip")
    ours, _ = saved["chatml"]
    assert ours.token_text(2) == "<|im_end|>"
    assert ours.token_text(10**6) == ""
    assert "�" in ours.token_text(ours.encode("🙂")[0])


def test_half_a_surrogate_pair_is_encoded_as_a_replacement_character(saved):
    ours, _ = saved["chatml"]
    assert ours.decode(ours.encode(json.loads(r'"a\ud800b \ud83d\ude42"'))) == "a�b 🙂"


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)
