"""Limits in PostgreSQL: functions on the server, one round trip a call, each call one transaction.

A call first takes the locks of its keys, always in one order, so that calls cannot deadlock; they are advisory
locks, since a bucket that nobody has drawn from has no row to lock. The time is read after that.

The tables are unlogged: a call then writes nothing that a disk must confirm, and their rows may be lost. They are
if PostgreSQL crashes (not at a clean restart): then every bucket is full and every place free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import asyncpg
from sqlalchemy.engine import make_url

from coserve.service.limits.bucket import UNUSED_SECONDS, Draw
from coserve.service.limits.shared import PATIENCE, How

MOST_PLACES = 2**31 - 1  # what the function's parameter holds
CONNECTIONS = 4  # a call takes a fraction of a millisecond there
SWEEP_SECONDS = 60.0
LOCKS = 1_667_588_965  # the first half of our advisory locks' names: one for all that coserve's limits lock

SCHEMA = f"""
SELECT pg_advisory_xact_lock({LOCKS});  -- one process at a time; all that follows is one transaction

-- fillfactor: room for a row's next version beside it, so that an update need not touch the index
CREATE UNLOGGED TABLE IF NOT EXISTS limit_buckets (
    key text PRIMARY KEY,
    used double precision NOT NULL,
    at timestamptz NOT NULL,
    until timestamptz NOT NULL  -- when it may be forgotten
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE IF NOT EXISTS limit_leases (
    key text,
    lease text,
    until timestamptz NOT NULL,
    PRIMARY KEY (key, lease)
);

CREATE OR REPLACE FUNCTION limit_lock(keys text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({LOCKS}, name)
    FROM (SELECT DISTINCT hashtext(key) AS name FROM unnest(keys) AS key ORDER BY name) AS names;
END $$;

CREATE OR REPLACE FUNCTION limit_draw(
    how text, keep double precision, keys text[], capacities double precision[], rates double precision[],
    amounts double precision[], OUT granted boolean, OUT result double precision[]
) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    takes double precision[];
BEGIN
    PERFORM limit_lock(keys);
    moment := clock_timestamp();

    SELECT array_agg(
        CASE WHEN b.key IS NULL THEN 0
        ELSE greatest(0, b.used - d.rate * greatest(0, extract(epoch FROM moment - b.at)::double precision))
        END ORDER BY d.i
    ) INTO result
    FROM unnest(keys, rates) WITH ORDINALITY AS d (key, rate, i)
    LEFT JOIN limit_buckets AS b ON b.key = d.key;

    SELECT array_agg(CASE WHEN how = 'preset' AND d.used > 0 THEN 0 ELSE d.amount END ORDER BY d.i) INTO takes
    FROM unnest(result, amounts) WITH ORDINALITY AS d (used, amount, i);

    granted := how <> 'reserve' OR NOT EXISTS (
        SELECT FROM unnest(result, takes, capacities) AS d (used, take, capacity) WHERE d.used + d.take > d.capacity
    );
    IF NOT granted THEN
        RETURN;
    END IF;

    INSERT INTO limit_buckets (key, used, at, until)
    SELECT d.key, d.used, moment,
        moment + interval '1 second'
            * CASE WHEN d.used = 0 THEN 0 WHEN d.rate > 0 THEN least(d.used / d.rate, 1e10) ELSE keep END
    FROM (
        SELECT e.key, e.rate, greatest(0, e.used + e.take) AS used
        FROM unnest(keys, rates, result, takes) AS e (key, rate, used, take)
        WHERE e.take <> 0
    ) AS d
    ON CONFLICT (key) DO UPDATE SET used = excluded.used, at = excluded.at, until = excluded.until;

    SELECT array_agg(greatest(0, d.used + d.take) ORDER BY d.i) INTO result
    FROM unnest(result, takes) WITH ORDINALITY AS d (used, take, i);
END $$;

CREATE OR REPLACE FUNCTION limit_acquire(
    wanted_key text, capacity integer, wanted_lease text, seconds double precision
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
BEGIN
    PERFORM limit_lock(ARRAY[wanted_key]);
    moment := clock_timestamp();
    DELETE FROM limit_leases WHERE key = wanted_key AND until <= moment;
    IF NOT EXISTS (SELECT FROM limit_leases WHERE key = wanted_key AND lease = wanted_lease)
        AND (SELECT count(*) FROM limit_leases WHERE key = wanted_key) >= capacity
    THEN
        RETURN false;
    END IF;
    INSERT INTO limit_leases (key, lease, until)
    VALUES (wanted_key, wanted_lease, moment + seconds * interval '1 second')
    ON CONFLICT (key, lease) DO UPDATE SET until = excluded.until;
    RETURN true;
END $$;
"""
DRAW = "SELECT granted, result FROM limit_draw($1, $2, $3, $4, $5, $6)"
ACQUIRE = "SELECT limit_acquire($1, $2, $3, $4)"
RELEASE = "DELETE FROM limit_leases WHERE key = $1 AND lease = $2"
# rows that a call has locked are skipped: the sweeper waits for nobody, and so is in nobody's way
SWEEP = """
DELETE FROM limit_buckets WHERE key IN (
    SELECT key FROM limit_buckets WHERE until <= clock_timestamp() FOR UPDATE SKIP LOCKED
);
DELETE FROM limit_leases WHERE (key, lease) IN (
    SELECT key, lease FROM limit_leases WHERE until <= clock_timestamp() FOR UPDATE SKIP LOCKED
);
"""


class PostgresBackend:
    """One database by its URL. Makes its tables and functions there if they are missing.

    Without SQLAlchemy in between, which would take four fifths of a call's time in this process.
    """

    errors: tuple[type[Exception], ...] = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

    def __init__(self, url: str):
        place = make_url(url).set(drivername="postgresql")
        self.name = f"PostgreSQL at {place.host or 'its socket'}:{place.port or 5432}"
        self._url = place.render_as_string(hide_password=False)
        self._pool: asyncpg.Pool | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=CONNECTIONS,
            timeout=PATIENCE,
            command_timeout=PATIENCE,
            reset=_leave_as_it_is,
        )
        await self._pool.execute(SCHEMA)
        self._sweeper = asyncio.create_task(self._sweep(self._pool))

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._pool is not None:
            await self._pool.close()

    async def draw(self, how: How, draws: Sequence[Draw]) -> tuple[bool, list[float]]:
        limits = [draw.limit for draw in draws]
        keys = [limit.key for limit in limits]
        capacities, rates = [limit.capacity for limit in limits], [limit.rate for limit in limits]
        amounts = [draw.amount for draw in draws]
        row = await self._open_pool.fetchrow(DRAW, how, UNUSED_SECONDS, keys, capacities, rates, amounts)
        return row["granted"], row["result"] or []

    async def acquire(self, key: str, capacity: int, lease: str, seconds: float) -> bool:
        return bool(await self._open_pool.fetchval(ACQUIRE, key, min(capacity, MOST_PLACES), lease, seconds))

    async def release(self, key: str, lease: str) -> None:
        await self._open_pool.execute(RELEASE, key, lease)

    @property
    def _open_pool(self) -> asyncpg.Pool:
        if self._pool is None:
            raise asyncpg.InterfaceError("it was not opened")
        return self._pool

    async def _sweep(self, pool: asyncpg.Pool) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            with suppress(*self.errors):  # the next round will do it
                await pool.execute(SWEEP, timeout=SWEEP_SECONDS)


async def _leave_as_it_is(_connection: asyncpg.Connection) -> None:
    """Our calls leave nothing on a connection: setting it back, as the pool would, doubles the round trips."""
