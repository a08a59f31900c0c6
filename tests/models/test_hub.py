import socket
from pathlib import Path

import pytest

from coserve.errors import ModelError
from coserve.models import hub as hub_module
from coserve.models import load_weights, resolve_model
from tests.models.hub_stand_in import Hub, serving
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), sharded=True)


@pytest.fixture
def hub(checkpoint, monkeypatch):
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    unwanted = ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/config.json")
    repos = {
        "org/tiny": {**files, "chat_template.jinja": b"hi", **dict.fromkeys(unwanted, b"{}")},
        "org/gated": files,
        "org/other": {"README.md": b"not a model"},
    }
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub(repos, gated=frozenset({"org/gated"}))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_local_directory_is_itself(checkpoint, monkeypatch):
    assert resolve_model(checkpoint) == checkpoint
    assert resolve_model(str(checkpoint)) == checkpoint
    monkeypatch.chdir(checkpoint.parent)
    assert resolve_model(checkpoint.name) == Path(checkpoint.name)


def test_builtin_is_the_directory_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "BUILTIN_DIRECTORY", tmp_path)
    with pytest.raises(ModelError, match="not part of this installation"):
        resolve_model("builtin")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("builtin") == tmp_path


def test_a_hub_id_is_downloaded_with_its_json_safetensors_and_jinja_files_only(hub, checkpoint, tmp_path):
    directory = resolve_model("org/tiny", cache_dir=tmp_path)
    wanted = {file.name for file in checkpoint.iterdir()} | {"chat_template.jinja"}
    assert {file.name for file in directory.iterdir()} == wanted
    assert set(hub.downloaded) == wanted
    assert dict(load_weights(directory)).keys() == dict(load_weights(checkpoint)).keys()


def test_what_has_been_downloaded_is_not_fetched_again_and_serves_without_the_hub(hub, tmp_path, monkeypatch):
    first = resolve_model("org/tiny", cache_dir=tmp_path)
    hub.downloaded.clear()
    assert resolve_model("org/tiny", cache_dir=tmp_path) == first
    assert hub.downloaded == []
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert resolve_model("org/tiny", cache_dir=tmp_path) == first


def test_a_gated_model_needs_a_token_and_the_error_says_so(hub, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"org/gated is gated: ask for access .* HF_TOKEN"):
        resolve_model("org/gated", cache_dir=tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (resolve_model("org/gated", cache_dir=tmp_path) / "config.json").is_file()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/none", "org/none is neither a local directory nor a model on the hub"),
        ("org/other", "org/other on the hub has no config.json"),
        ("./nowhere", "no such directory, and not a hub id"),
        ("/no/such/model", "no such directory, and not a hub id"),
        ("a/b/c", "no such directory, and not a hub id"),
        ("org/bad--name", "org/bad--name cannot be fetched"),
        ("", "no such directory|not a model directory"),
        (Path("org/tiny"), "no such directory"),
    ],
)
def test_what_is_no_model_is_refused(hub, tmp_path, model, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        resolve_model(model, cache_dir=tmp_path)


def test_a_directory_without_a_configuration_and_a_file_are_no_models(tmp_path):
    with pytest.raises(ModelError, match=r"is not a model directory: it has no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file; a model is a directory"):
        resolve_model(tmp_path / "model.safetensors")


def test_a_hub_that_cannot_be_reached_is_said_to_be_that(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ModelError, match="org/tiny is not a local directory, and the hub cannot be reached"):
        resolve_model("org/tiny", cache_dir=tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
