"""What a server is started with: which source wins, and which values are refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from coserve.address import Server, find_server, read_server_file, server_file, write_server_file
from coserve.cli.launch import choose_keys, reachable
from coserve.cli.settings import ServeSettings, serve_settings
from coserve.errors import InvalidRequest


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> None:
    for name in ("COSERVE_URL", "COSERVE_API_KEY", "COSERVE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COSERVE_HOME", str(tmp_path / "home"))


def test_options_win_over_environment_over_file_over_defaults(tmp_path, monkeypatch):
    config = tmp_path / "coserve.yaml"
    config.write_text(f"port: 1\nhost: 0.0.0.0\napi-key: from-file\nhome: {tmp_path / 'other'}\nprotect: goals\n")
    monkeypatch.setenv("COSERVE_API_KEY", "from-environment")
    settings = serve_settings(config, port=2, dtype=None)
    assert (settings.port, settings.host, settings.dtype) == (2, "0.0.0.0", "auto")
    assert settings.api_key == "from-environment"
    assert settings.home == tmp_path / "home"
    assert settings.protect == "goals"


def test_the_key_is_not_in_the_settings_repr():
    assert "secret" not in repr(ServeSettings(api_key="secret"))


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65536},
        {"port": -1},
        {"protect": "0.9"},
        {"protect": "nan"},
        {"protect": "fast"},
        {"dtype": "int3"},
        {"weights": "int3"},
        {"device": "gpu"},
        {"device": "cuda:x"},
        {"device": 1},
        {"model": ""},
        {"log_level": "loud"},
    ],
)
def test_a_bad_value_is_refused_by_its_options_name(options):
    (name,) = options
    with pytest.raises(InvalidRequest, match=f"--{name.replace('_', '-')} is"):
        serve_settings(None, **options)


def test_on_a_cpu_integers_are_computed_with_in_float32_alone():
    assert serve_settings(None, device="cpu", weights="int8", dtype="float32").weights == "int8"
    with pytest.raises(InvalidRequest, match="--dtype is 'bfloat16'; it must be auto or float32 with --weights int4"):
        serve_settings(None, device="cpu", weights="int4", dtype="bfloat16")
    with pytest.raises(InvalidRequest, match="--weights is 'fp8'; it must be int8 or another one on a CPU"):
        serve_settings(None, device="cpu", weights="fp8")
    assert serve_settings(None, device="cuda", weights="fp8", dtype="bfloat16").device == "cuda"


def test_the_device_has_one_word_in_all_four_places(tmp_path, monkeypatch):
    config = tmp_path / "coserve.yaml"
    config.write_text("device: cpu\n")
    assert serve_settings().device == "auto"
    assert serve_settings(config).device == "cpu"
    monkeypatch.setenv("COSERVE_DEVICE", "cuda:1")
    assert serve_settings(config).device == "cuda:1"
    assert serve_settings(config, device="cuda").device == "cuda"


@pytest.mark.parametrize("text", ["- 1", "colour: red", "a: [", "\x00"])
def test_a_bad_configuration_file_is_named(text, run, tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    result = run("serve", "builtin", "--config", config)
    assert result.exit_code == 2
    assert "bad.yaml" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_users_key_is_used_and_kept_nowhere():
    keys = choose_keys(serve_settings(None, api_key="sk-mine"))
    assert (keys.configured, keys.kept) == ("sk-mine", None)
    assert "sk-mine" not in keys.describe(None, Path("server.json"))


def test_a_first_start_leaves_the_key_to_the_service():
    keys = choose_keys(serve_settings())
    assert keys.configured is None
    assert "sk-new" in keys.describe("sk-new", Path("server.json"))


def test_a_later_start_finds_the_first_key_and_does_not_print_it(tmp_path):
    write_server_file(tmp_path / "home", Server("http://127.0.0.1:1", "sk-first", 7))
    keys = choose_keys(serve_settings())
    assert (keys.configured, keys.kept) == (None, "sk-first")
    assert "sk-first" not in keys.describe(None, Path("server.json"))


def test_a_lost_key_is_replaced_for_this_run(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "coserve.db").touch()
    keys = choose_keys(serve_settings())
    assert keys.configured in keys.describe(None, Path("server.json"))


def test_a_home_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    result = run("serve", "builtin", "--home", tmp_path / "file" / "home")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_the_address_of_all_interfaces_is_reached_by_loopback():
    assert reachable("http://0.0.0.0:8000") == "http://127.0.0.1:8000"
    assert reachable("http://[::]:8000") == "http://[::1]:8000"


def test_the_server_file_is_its_owners_alone(tmp_path):
    write_server_file(tmp_path, Server("http://127.0.0.1:1", "sk-1"))
    assert stat.S_IMODE(server_file(tmp_path).stat().st_mode) == 0o600


def test_the_last_server_is_found_again(tmp_path):
    server = Server("http://127.0.0.1:1", "sk-1", 7)
    write_server_file(tmp_path, server)
    assert read_server_file(tmp_path) == server
    assert find_server(tmp_path) == server
    assert find_server(tmp_path, url="http://127.0.0.1:1/v1/").api_key == "sk-1"
    assert find_server(tmp_path, url="http://elsewhere").api_key is None, "a key goes to its own server only"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}'])
def test_a_spoilt_server_file_is_as_none(text, tmp_path: Path):
    server_file(tmp_path).write_text(text)
    assert read_server_file(tmp_path) is None
