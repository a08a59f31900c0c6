"""While the database is away, what needs it is a passing 503, and all is well when it is back."""

import asyncio
from contextlib import suppress

import openai
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from coserve.errors import Unavailable
from coserve.service.auth.projects import NewProject
from coserve.service.database import Database, DatabaseError, sqlite_url
from tests.service.admin import soon
from tests.service.conftest import openai_client, start
from tests.service.servers import free_port
from tests.service.tenants import make_tenants

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def postgres(postgres_server, postgres_url):
    process, _ = postgres_server
    yield process, postgres_url
    if process.process is None:
        process.start()


def is_away(ask):
    with pytest.raises(openai.InternalServerError) as refused:
        ask()
    assert (refused.value.status_code, refused.value.code) == (503, "database_away")
    assert refused.value.response.headers["retry-after"] == "1"
    assert "The database cannot be used at the moment" in refused.value.message
    return True


def answers(ask):
    with suppress(openai.InternalServerError):
        return ask() is not None


@pytest.mark.parametrize("limit", [{"limits": {"requests_per_day": 100}}, {"budget": 10**12}])
def test_a_first_request_that_the_database_must_be_asked_for(tmp_path, postgres, limit):
    process, url = postgres
    [(_, key)] = make_tenants(tmp_path, [NewProject("p", **limit)], database_url=url)
    server = start(tmp_path, database_url=url)

    def chat():
        return client.chat.completions.create(model="base", messages=MESSAGES)

    with openai_client(server, key) as client:
        process.stop()
        assert is_away(chat)
        assert is_away(client.files.list)
        process.start()
        assert soon(lambda: answers(chat))
        process.stop()
        assert chat().choices, "what the limits began with is known"
        process.start()
        assert soon(lambda: answers(client.files.list))
    server.stop()


def test_a_database_that_others_hold_for_long_is_away(tmp_path):
    async def run():
        one, other = Database(sqlite_url(tmp_path / "db")), Database(sqlite_url(tmp_path / "db"))
        await one.open()
        async with other.read() as session:
            await session.execute(text("PRAGMA busy_timeout=1"))  # on the one connection in the pool
        async with one.write() as holder:
            await holder.execute(text("SELECT 1"))
            with pytest.raises(Unavailable):
                async with other.write() as session:
                    await session.execute(text("SELECT 1"))
        await one.close()
        await other.close()

    asyncio.run(run())


def test_a_wrong_statement_is_no_absence(postgres_url):
    async def run():
        database = Database(postgres_url)
        await database.open()
        with pytest.raises(ProgrammingError):
            async with database.read() as session:
                await session.execute(text("SELECT * FROM nothing"))
        await database.close()

    asyncio.run(run())


def test_a_server_does_not_start_without_its_database():
    with pytest.raises(DatabaseError, match=r"cannot be opened: .*Connect call failed"):
        asyncio.run(Database(f"postgresql://postgres@127.0.0.1:{free_port()}/none").open())
