"""The schema: the migrations make what the tables say, and a newer one is refused."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from coserve.service.database import SCHEMA, Database, DatabaseError, migrate, sqlite_url
from coserve.service.ids import new_id, now
from coserve.service.migrations import known
from coserve.service.tables import FileRow, Table


def open_and_close(path):
    async def run():
        database = Database(sqlite_url(path))
        await database.open()
        await database.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_migrations_make_the_tables(tmp_path, kind, request):
    url = sqlite_url(tmp_path / "db") if kind == "sqlite" else request.getfixturevalue("postgres_url")

    async def difference():
        database = Database(url)
        await database.open()
        async with database._engine.connect() as connection:
            found = await connection.run_sync(lambda c: compare_metadata(MigrationContext.configure(c), Table.metadata))
        await database.close()
        return found

    assert asyncio.run(difference()) == []


def test_opening_twice_changes_nothing(tmp_path):
    open_and_close(tmp_path / "db")
    before = sqlite3.connect(tmp_path / "db").execute("select sql from sqlite_master").fetchall()
    open_and_close(tmp_path / "db")
    assert sqlite3.connect(tmp_path / "db").execute("select sql from sqlite_master").fetchall() == before


def test_a_schema_is_up_to_date_after_the_last_migration(tmp_path):
    open_and_close(tmp_path / "db")
    with sqlite3.connect(tmp_path / "db") as connection:
        assert connection.execute("select version_num from alembic_version").fetchall() == [(SCHEMA,)]
    assert known()[0] == SCHEMA


def test_a_newer_schema_is_refused_in_one_clear_line(tmp_path):
    open_and_close(tmp_path / "db")
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(DatabaseError, match="written by a newer coserve") as caught:
        open_and_close(tmp_path / "db")
    assert "\n" not in caught.value.message


def test_a_migration_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch):
    def cut_off(connection):
        migrate(connection)
        raise OSError("power failure")

    monkeypatch.setattr("coserve.service.database.migrate", cut_off)
    with pytest.raises(DatabaseError):
        open_and_close(tmp_path / "db")
    monkeypatch.undo()
    assert sqlite3.connect(tmp_path / "db").execute("select * from sqlite_master").fetchall() == []
    open_and_close(tmp_path / "db")


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(DatabaseError, match="cannot be opened"):
        open_and_close(tmp_path / "db")


def test_writers_take_turns(tmp_path):
    async def run():
        database = Database(sqlite_url(tmp_path / "db"))
        await database.open()

        async def write(i: int) -> None:
            async with database.write() as session:
                await session.scalar(select(FileRow.seq))  # reading first is where SQLite would refuse
                owner = {"project_id": "proj-default", "created_at": now()}
                row = FileRow(id=new_id("file"), filename=str(i), purpose="x", bytes=i, **owner)
                session.add(row)

        await asyncio.gather(*(write(i) for i in range(30)))
        async with database.read() as session:
            names = list(await session.scalars(select(FileRow.filename).order_by(FileRow.seq)))
        await database.close()
        return names

    assert asyncio.run(run()) == [str(i) for i in range(30)]


def test_what_an_earlier_version_wrote_is_kept_and_belongs_to_the_default_project(tmp_path):
    path = tmp_path / "db"
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parent / "data" / "schema_0001.sql").read_text())
    open_and_close(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("select id, project_id, tier, scopes, revoked_at from keys").fetchall() == [
            ("key-1", "proj-default", None, '["all"]', None)
        ]
        assert connection.execute("select id, project_id from files").fetchall() == [("file-1", "proj-default")]
        assert connection.execute("select id, project_id, key_id from jobs").fetchall() == [
            ("ftjob-1", "proj-default", "")
        ]
        assert connection.execute("select job_id, message from job_events").fetchall() == [("ftjob-1", "Created")]
        assert connection.execute("pragma foreign_key_check").fetchall() == []


def test_urls_are_taken_as_people_write_them():
    assert Database("postgresql://me@host/name").url == "postgresql+asyncpg://me@host/name"
    assert Database("postgres://me@host/name").url == "postgresql+asyncpg://me@host/name"
    assert Database("sqlite:////data/x.db").url == "sqlite+aiosqlite:////data/x.db"
    for wrong in ("", "mongodb://host/name", "nonsense"):
        with pytest.raises(DatabaseError, match="must be like"):
            Database(wrong)
