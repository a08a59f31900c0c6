"""Which store a URL means, and what is said if it means none."""

import builtins
import sys

import pytest

from coserve.errors import InvalidRequest
from coserve.service.limits import open_store
from coserve.service.limits.memory import MemoryStore
from coserve.service.limits.postgres import PostgresBackend
from coserve.service.limits.redis import RedisBackend


def test_no_url_means_memory():
    assert isinstance(open_store(None), MemoryStore)


@pytest.mark.parametrize(
    ("url", "backend", "name"),
    [
        ("redis://:secret@there:7000/2", RedisBackend, "Redis at there:7000"),
        ("rediss://there", RedisBackend, "Redis at there:6379"),
        ("unix:///run/redis.sock", RedisBackend, "Redis at /run/redis.sock"),
        ("postgresql://me:secret@there/limits", PostgresBackend, "PostgreSQL at there:5432"),
        ("postgresql+asyncpg://me:secret@there:7000/limits", PostgresBackend, "PostgreSQL at there:7000"),
    ],
)
def test_a_url_names_its_server_and_no_password_is_told(url, backend, name):
    store = open_store(url)
    assert isinstance(store._backend, backend) and store._backend.name == name


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://there", "cannot be kept at 'mysql': use redis"),
        ("", "use redis"),
        ("redis://:secret/there", "is not valid"),
        ("postgresql:secret", "is not valid"),
        ("postgresql://me:secret@there:port/limits", "is not valid"),
    ],
)
def test_a_bad_url_is_one_clear_line(url, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        open_store(url)
    assert "\n" not in caught.value.message and "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "package", "module"),
    [("redis://there", "redis", "redis"), ("postgresql://there/limits", "asyncpg", "postgres")],
)
def test_a_missing_package_is_one_clear_line(url, package, module, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, f"coserve.service.limits.{module}")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidRequest, match=rf"pip install 'coserve\[{module}\]'"):
        open_store(url)
