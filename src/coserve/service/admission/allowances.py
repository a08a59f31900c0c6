"""What a project may keep here: bytes of files, batches that are not over."""

from __future__ import annotations

import math

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.service.admission.quota import DAY
from coserve.service.admission.refusals import QuotaExceeded, RateLimited, TooLarge, retry_headers
from coserve.service.auth.keys import Key
from coserve.service.batches import states
from coserve.service.tables import BatchRow, FileRow, ProjectRow
from coserve.service.tiers import Terms, Tiers

STORAGE = "storage"


async def check_file(session: AsyncSession, tiers: Tiers, key: Key, size: int) -> None:
    """Raises `TooLarge`, `QuotaExceeded` unless one more file, of `size` bytes, may be kept.

    Results of jobs and batches count too, but are never refused.
    """
    terms = _terms(tiers, key)
    most = terms.goals.files.bytes
    if most is None:
        return
    headers = retry_headers(math.inf)
    if size > most:
        raise TooLarge(
            f"The file is too large for the tier {terms.tier!r}: Limit {most} bytes of all files, Requested {size}.",
            type=STORAGE,
            headers=headers,
        )
    await _one_at_a_time(session, key)
    query = select(func.sum(FileRow.bytes)).where(FileRow.project_id == key.project.id)
    used = int(await session.scalar(query) or 0)
    if used + size > most:
        raise QuotaExceeded(
            f"The project's files have reached what the tier {terms.tier!r} allows: Limit {most} bytes, Used {used}, "
            f"Requested {size}. Delete files that are not needed any more.",
            type=QuotaExceeded.type,
            headers=headers,
        )


async def check_batch(session: AsyncSession, tiers: Tiers, key: Key) -> None:
    """Raises `RateLimited` when the project's tier allows no further batch now."""
    terms = _terms(tiers, key)
    most = terms.goals.batch.open_batches
    if most is None:
        return
    await _one_at_a_time(session, key)
    mine = BatchRow.project_id == key.project.id
    query = select(func.count()).select_from(BatchRow).where(mine, BatchRow.status.in_(states.UNFINISHED))
    if (await session.scalar(query) or 0) >= most:
        raise RateLimited(
            f"The tier {terms.tier!r} allows {most} batches at once that are not over. "
            "Please try again when one of them has ended.",
            type="requests",
            headers=retry_headers(DAY),
        )


def _terms(tiers: Tiers, key: Key) -> Terms:
    return tiers.terms(key.tier or tiers.highest, None)


async def _one_at_a_time(session: AsyncSession, key: Key) -> None:
    """Until the transaction ends no other server counts for this project: two could both find the last place free."""
    await session.execute(select(ProjectRow.id).where(ProjectRow.id == key.project.id).with_for_update())
