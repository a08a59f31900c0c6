"""Old rows of the bill, summed by day: the totals stay, the single requests go."""

from __future__ import annotations

from sqlalchemy import BigInteger, delete, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.service.database import Database
from coserve.service.ledger.days import DAY, GROUPS, SUMS, single_rows
from coserve.service.ledger.dialect import POSTGRESQL, dialect, insert
from coserve.service.tables import UsageDayRow, UsageRow

KEEP_DAYS = 62
"""Two months: budgets look back one, and an id that comes again is known for as long as its row is kept."""


async def roll_up(database: Database, now: float, keep_days: int = KEEP_DAYS) -> int:
    """Sum the rows of whole days (UTC) that ended `keep_days` ago. Returns how many rows went.

    Each day is one transaction in which nobody else writes: a row is in one table or in the other, never in both.
    """
    before = (int(now) // DAY - keep_days) * DAY
    gone = 0
    while True:
        async with database.write() as session:
            await _lock(session)
            oldest = await session.scalar(select(func.min(UsageRow.created_at)).where(UsageRow.created_at < before))
            if oldest is None:
                return gone
            gone += await _roll_up_day(session, oldest // DAY * DAY)


async def _lock(session: AsyncSession) -> None:
    """SQLite has one writer anyway; PostgreSQL would let rows in between summing and deleting."""
    if dialect(session) == POSTGRESQL:
        await session.execute(text("LOCK TABLE usage IN SHARE ROW EXCLUSIVE MODE"))


async def _roll_up_day(session: AsyncSession, day: int) -> int:
    of_day = (UsageRow.created_at >= day, UsageRow.created_at < day + DAY)
    rows = single_rows().where(*of_day).subquery()
    groups = [rows.c[name] for name in GROUPS]
    sums = [func.sum(rows.c[name]).cast(BigInteger) for name in SUMS]
    table = UsageDayRow.__table__
    statement = insert(session, table).from_select(
        ["day", *GROUPS, *SUMS],
        select(literal(day, BigInteger), *groups, *sums).group_by(*groups),
    )
    added = {name: table.c[name] + statement.excluded[name] for name in SUMS}
    await session.execute(statement.on_conflict_do_update(index_elements=["day", *GROUPS], set_=added))
    gone = await session.execute(delete(UsageRow).where(*of_day).execution_options(synchronize_session=False))
    return int(gone.rowcount)  # type: ignore[attr-defined]
