"""upstreams.yaml: a mistake is one line that names the file and the field."""

from pathlib import Path

import pytest

from coserve.errors import InvalidRequest
from coserve.service.upstreams.config import read_keys, read_upstreams, upstreams_path

GOOD = """
upstreams:
  groq:
    base_url: https://api.groq.com/openai/v1/
    api_key_env: GROQ_API_KEY
    refuses: [logit_bias]
    price: {input: 0.05, output: 0.08}
    requests_per_minute: 1000
    timeout: {connect: 500ms, first_token: 30s}
    models: {llama: llama-3.1-8b-instant, big: {name: their-big, price: {input: 1, output: 2}}}
  box: {base_url: "http://10.0.0.7:8000/v1"}
models:
  llama: {via: [groq, box], routing: weight, weights: {groq: 3, box: 1}}
  big: {via: [local, groq]}
"""


def read(tmp_path: Path, text: str):
    (tmp_path / "upstreams.yaml").write_text(text)
    return read_upstreams(tmp_path / "upstreams.yaml")


def test_a_file_is_read_whole(tmp_path):
    content = read(tmp_path, GOOD)
    groq = content.upstreams["groq"]
    assert groq.base_url == "https://api.groq.com/openai/v1"
    assert (groq.timeout.connect, groq.timeout.first_token, groq.timeout.idle) == (0.5, 30, 30)
    assert (groq.name_of("llama"), groq.name_of("big"), groq.name_of("x")) == ("llama-3.1-8b-instant", "their-big", "x")
    assert (groq.price_of("llama").input, groq.price_of("big").output) == (groq.price.input, 2)
    assert read_upstreams(None).models == {}


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("https://api.groq.com/openai/v1/", "ftp://x", "upstreams.groq.base_url: 'ftp://x' is no http(s) address"),
        ("https://api.groq.com/openai/v1/", "https://u:p@x/v1", "must not hold a user or a password"),
        ("api_key_env", "api_key", "upstreams.groq.api_key: Extra inputs"),
        ("input: 0.05", "input: -1", "upstreams.groq.price.input:"),
        ("500ms", "soon", "upstreams.groq.timeout.connect: time: 'soon' is not a time"),
        ("[local, groq]", "[local, bax]", "models.big.via: there is no upstream 'bax'; there are groq, box"),
        ("weights: {groq: 3, box: 1}", "weights: {groq: 3}", "models.llama: 'weights' must give one for each"),
        ("routing: weight", "routing: luck", "models.llama.routing:"),
        ("via: [local, groq]", "via: [local, groq], overflow: true", "models.big: with 'overflow', 'local' is first"),
        ("via: [local, groq]", "via: []", "models.big.via:"),
        ("{llama: llama-3.1", "{lama: llama-3.1", "upstreams.groq.models: 'lama' does not go via 'groq'"),
        ("  box:", "  local:", "upstreams.local: 'local' is no name for an upstream"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, field):
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert str(tmp_path / "upstreams.yaml") in caught.value.message
    assert field in caught.value.message


def test_each_mistake_has_its_line(tmp_path):
    with pytest.raises(InvalidRequest) as caught:
        read(tmp_path, GOOD.replace("500ms", "soon").replace("input: 0.05", "input: -1"))
    assert len(caught.value.message.splitlines()) == 2


def test_what_is_no_file_or_no_yaml_is_said(tmp_path):
    with pytest.raises(InvalidRequest, match="Cannot read"):
        read_upstreams(tmp_path / "none.yaml")
    with pytest.raises(InvalidRequest, match="is not YAML"):
        read(tmp_path, "a: [")


def test_keys_come_from_the_environment(tmp_path):
    content = read(tmp_path, GOOD)
    assert read_keys(content, {"GROQ_API_KEY": " k "}) == {"groq": "k"}
    with pytest.raises(InvalidRequest, match=r"Set GROQ_API_KEY \(for 'groq'\)"):
        read_keys(content, {})


def test_the_home_s_file_is_the_default(tmp_path):
    assert upstreams_path(None, tmp_path) is None
    (tmp_path / "upstreams.yaml").touch()
    assert upstreams_path(None, tmp_path) == tmp_path / "upstreams.yaml"
    assert upstreams_path(Path("/else.yaml"), tmp_path) == Path("/else.yaml")
