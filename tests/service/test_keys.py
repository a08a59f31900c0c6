"""API keys: shown once, kept as hashes, never logged."""

import asyncio
import logging
import sqlite3
import stat

import openai
import pytest

from coserve.service import Settings
from coserve.service.auth.keys import KeyRing, NewKey, make_key, open_key_ring, read_secret
from coserve.service.database import Database, sqlite_url
from tests.service.conftest import openai_client, start


def test_the_first_key_is_made_once_and_stays_valid(tmp_path):
    server = start(tmp_path, api_key=None)
    key = server.new_key
    assert key.startswith("sk-cs-")
    assert len(key) == len("sk-cs-") + 43  # 256 bits in base64
    assert openai_client(server, key).models.list().data
    server.stop()
    again = start(tmp_path, api_key=None)
    assert again.new_key is None
    assert openai_client(again, key).models.list().data
    again.stop()
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    stored = sqlite3.connect(tmp_path / "coserve.db").execute("select prefix, hash from keys").fetchall()
    assert stored[0][0] == key[:10]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_a_lost_secret_makes_old_keys_void(tmp_path):
    async def open_twice():
        database = Database(sqlite_url(tmp_path / "db"))
        await database.open()
        _, first = await open_key_ring(database, tmp_path, None)
        (tmp_path / "secret.key").unlink()
        ring, second = await open_key_ring(database, tmp_path, None)
        await database.close()
        return ring, first, second

    ring, first, second = asyncio.run(open_twice())
    assert ring.find(first) is None
    assert ring.find(second) is not None


def test_many_keys_each_open_the_door(tmp_path):
    async def make():
        database = Database(sqlite_url(tmp_path / "db"))
        await database.open()
        await open_key_ring(database, tmp_path, "configured")
        secret, _ = read_secret(tmp_path / "secret.key")
        keys = [(await make_key(database, secret, NewKey(f"key {i}")))[0] for i in range(3)]
        ring, new = await open_key_ring(database, tmp_path, None)
        await database.close()
        return ring, keys, new

    ring, keys, new = asyncio.run(make())
    assert new is None
    assert len({ring.find(key).id for key in keys}) == 3
    assert ring.find("configured") is None  # it was that process's alone
    assert ring.find(keys[0] + "x") is None


def test_the_secret_is_whole_and_its_mode_is_repaired(tmp_path):
    path = tmp_path / "secret"
    secret, fresh = read_secret(path)
    path.chmod(0o644)
    assert (len(secret), fresh) == (32, True)
    assert read_secret(path) == (secret, False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"short")
    assert read_secret(path)[1]


def test_any_text_may_be_presented():
    ring = KeyRing(b"s" * 32)
    for key in ("", "\x00", "ÿ", "\ud800", "x" * 100_000):
        assert ring.find(key) is None


def test_settings_come_from_the_environment_and_hide_the_key(monkeypatch):
    monkeypatch.setenv("COSERVE_API_KEY", "sk-cs-from-outside")
    monkeypatch.setenv("COSERVE_HOME", "/somewhere")
    settings = Settings()
    assert (settings.api_key, str(settings.home)) == ("sk-cs-from-outside", "/somewhere")
    assert "sk-cs-from-outside" not in repr(settings)
    monkeypatch.setenv("COSERVE_API_KEY", "")
    assert Settings().api_key is None


def test_no_key_and_no_prompt_in_the_logs(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server = start(tmp_path, api_key=None)
    client = openai_client(server, server.new_key)
    messages = [{"role": "user", "content": "the-prompt-nobody-may-see"}]
    own_loggers = ("coserve", "uvicorn", "sqlalchemy", "alembic", "aiosqlite", "asyncio")
    server.engine.fail_after = 2
    for options in ({}, {"stream": True}, {"temperature": "hot"}, {"model": "nobody"}):
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(**{"model": "base", "messages": messages, **options}))
    with pytest.raises(openai.AuthenticationError):
        openai_client(server, "sk-cs-wrong-key-of-somebody").models.list()
    server.stop()
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.split(".")[0] in own_loggers)
    assert "the-prompt-nobody-may-see" not in logged
    assert server.new_key not in logged
    assert "sk-cs-wrong-key-of-somebody" not in logged
