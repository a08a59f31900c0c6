"""When keys were last used: told by the administration, and never a write a request."""

import asyncio
import sqlite3
import time

import pytest

from coserve.errors import Unavailable
from coserve.service.auth.keys import NewKey, list_keys, make_key
from coserve.service.auth.uses import KeyUses
from coserve.service.database import Database, sqlite_url
from tests.service.admin import http_client, new_key, soon
from tests.service.conftest import start

KEYS = "/v1/organization/projects/proj-default/api_keys"
ADMIN_KEYS = "/v1/organization/admin_api_keys"


def test_the_administration_tells(tmp_path, monkeypatch):
    monkeypatch.setattr("coserve.service.auth.uses.WRITE_SECONDS", 0.1)
    begun = int(time.time())
    admin, admin_id = new_key_of_new_home(tmp_path, scopes=("admin",))
    (used, used_id), (_, unused_id) = new_key(tmp_path), new_key(tmp_path)
    server = start(tmp_path)

    def last_used(path):
        return http.get(path).json()["last_used_at"]

    with http_client(server, admin) as http, http_client(server, used) as user:
        assert last_used(f"{KEYS}/{used_id}") is None
        assert user.get("/v1/models").status_code == 200
        assert soon(lambda: last_used(f"{KEYS}/{used_id}") is not None)
        assert begun <= last_used(f"{KEYS}/{used_id}") <= time.time()
        assert soon(lambda: last_used(f"{ADMIN_KEYS}/{admin_id}") is not None)
        assert last_used(f"{KEYS}/{unused_id}") is None
    server.stop()


def new_key_of_new_home(home, **fields):
    start(home).stop()
    return new_key(home, **fields)


def test_a_stop_writes_what_is_not_yet_written(tmp_path):
    key, key_id = new_key_of_new_home(tmp_path)
    server = start(tmp_path)
    with http_client(server, key) as http:
        assert http.get("/v1/models").status_code == 200
        assert stored(tmp_path, key_id) is None, "no request writes"
    server.stop()
    assert stored(tmp_path, key_id) is not None


def stored(home, key_id):
    with sqlite3.connect(home / "coserve.db") as database:
        return database.execute("SELECT last_used_at FROM keys WHERE id = ?", [key_id]).fetchone()[0]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_latest_time_stays_and_none_is_lost_while_the_database_is_away(tmp_path, request, monkeypatch, kind):
    async def run():
        url = sqlite_url(tmp_path / "db") if kind == "sqlite" else request.getfixturevalue("postgres_url")
        database = Database(url)
        await database.open()
        _, row = await make_key(database, b"x" * 32, NewKey("a"))

        async def used_at(moment, uses):
            monkeypatch.setattr("coserve.service.auth.uses.now", lambda: moment)
            uses.note(row.id)
            uses.note("no key of the database")
            await uses.write()
            return (await list_keys(database))[0].last_used_at

        one, other = KeyUses(database), KeyUses(database)
        assert await used_at(100, one) == 100
        assert await used_at(50, other) == 100
        monkeypatch.setattr(database, "write", away)
        with pytest.raises(Unavailable):
            await used_at(200, one)
        monkeypatch.undo()
        await one.write()
        assert (await list_keys(database))[0].last_used_at == 200
        await database.close()

    asyncio.run(run())


def away():
    raise Unavailable("It is away.")
