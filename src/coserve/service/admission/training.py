"""Fine-tuning jobs: how many a project may have at its tier, and what they cost when they have delivered a model."""

from __future__ import annotations

import math
from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.service.admission.quota import DAY, Quota, month_began, refused
from coserve.service.admission.refusals import RateLimited, retry_headers
from coserve.service.auth.keys import Key
from coserve.service.files import UNFINISHED
from coserve.service.ids import now
from coserve.service.ledger import Entry, Rates
from coserve.service.ledger.entry import COMPLETED
from coserve.service.ledger.totals import spent
from coserve.service.limits import Draw, Refusal
from coserve.service.tables import JobRow, KeyRow, ProjectRow, UsageRow
from coserve.service.tiers import Tiers


async def check_allowance(session: AsyncSession, tiers: Tiers, key: Key) -> None:
    """Raises `RateLimited` when the project's tier, or its budget, allows no further job now."""
    terms = tiers.terms(key.tier or tiers.highest, None)
    allowed = terms.goals.fine_tuning
    if allowed.price:
        await _check_budget(session, Quota(key.project, terms))
    mine = JobRow.project_id == key.project.id
    if allowed.concurrent_jobs is not None:
        query = select(func.count()).select_from(JobRow).where(mine, JobRow.status.in_(UNFINISHED))
        if (await session.scalar(query) or 0) >= allowed.concurrent_jobs:
            raise RateLimited(
                f"The tier {terms.tier!r} allows {allowed.concurrent_jobs} fine-tuning jobs at once. "
                "Please try again when one of them has ended.",
                type="requests",
                headers=retry_headers(DAY),
            )
    if allowed.tokens_per_day is not None:
        query = select(func.sum(JobRow.trained_tokens)).where(mine, JobRow.created_at > now() - DAY)
        used = await session.scalar(query) or 0
        if used >= allowed.tokens_per_day:
            raise RateLimited(
                f"Rate limit reached for trained tokens per day on the tier {terms.tier!r}: "
                f"Limit {allowed.tokens_per_day}, Used {used}.",
                headers=retry_headers(DAY),
            )


async def _check_budget(session: AsyncSession, quota: Quota) -> None:
    """Raises `QuotaExceeded` when nothing is left of it. What a job will cost, nobody knows before."""
    budget = quota.project.budget
    if budget is None:
        return
    left = budget - (await spent(session, quota.project.id, month_began())).cost
    if left <= 0:
        raise refused(Refusal(Draw(quota.budget(budget), 1), left, math.inf), quota.terms.tier)


async def bill(session: AsyncSession, tiers: Tiers, job: JobRow, outcome: str) -> int:
    """The job's one row in the ledger, in the transaction that ends the job. Only a model that came is paid for.

    Returns the cost in nano-dollars.
    """
    own = await session.scalar(select(KeyRow.tier).where(KeyRow.id == job.key_id))
    own = own or await session.scalar(select(ProjectRow.tier).where(ProjectRow.id == job.project_id))
    terms = tiers.terms(own or tiers.highest, None)
    price = terms.goals.fine_tuning.price if outcome == COMPLETED else Decimal(0)
    entry = Entry(
        id=job.id,
        created_at=now(),
        endpoint="fine_tuning",
        project_id=job.project_id,
        key_id=job.key_id,
        tier=terms.tier,
        terms=terms.named,
        model=job.model,
        adapter=job.fine_tuned_model,
        trained_tokens=job.trained_tokens,
        latency_ms=1e3 * (now() - job.created_at),
        outcome=outcome,
    )
    billed = entry.billed(Rates(trained=price))
    session.add(UsageRow(**billed.as_row()))
    return billed.cost
