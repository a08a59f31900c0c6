"""Who gets a passage: checks what can be known before anything is reserved."""

from __future__ import annotations

from contextlib import suppress

from coserve.errors import ContextLengthExceeded, ModelNotFound, Unavailable
from coserve.service.admission.estimates import Estimates
from coserve.service.admission.passage import Passage
from coserve.service.admission.quota import BUDGET, DAY, Quota, month_began
from coserve.service.admission.wish import Wish
from coserve.service.auth.keys import Key
from coserve.service.auth.projects import Project
from coserve.service.database import Database
from coserve.service.ids import now
from coserve.service.ledger import Ledger
from coserve.service.ledger.totals import FAR, spent, totals
from coserve.service.limits import Draw, Limit, LimitStore
from coserve.service.metrics import Metrics
from coserve.service.tiers import BATCH, Terms, Tiers


class Admission:
    """Makes passages. `base_model` and `context` (tokens) are the engine's."""

    def __init__(
        self,
        tiers: Tiers,
        limits: LimitStore,
        ledger: Ledger,
        database: Database,
        metrics: Metrics,
        *,
        base_model: str,
        context: int,
    ):
        self.tiers, self.limits, self.ledger, self.metrics = tiers, limits, ledger, metrics
        self.estimates = Estimates()
        self.base_model, self.context = base_model, context
        self._database = database
        self._begun: set[str] = set()  # buckets that hold what the ledger knows of before this process

    def passage(self, key: Key, wish: Wish, *, upstream: str | None = None) -> Passage:
        """A passage for the request, to be entered where the work begins.

        Raises `ModelNotFound`, `InvalidRequest` for a service tier that the key may not ask for,
        `ContextLengthExceeded` for more than the tier's context.
        """
        own = key.tier or self.tiers.highest
        batch = wish.batch_id is not None
        terms = self.tiers.batch_terms(own) if batch else self.tiers.terms(own, wish.service_tier, key.up_to)
        self._check_model(key, terms, wish.model)
        self._check_context(terms, wish)
        return Passage(self, key, terms, wish, upstream)

    def is_open(self, model: str, key: Key) -> bool:
        """Whether the key names the model, or its tier if it names none."""
        return _names(_allowed(key, self.tiers.terms(key.tier or self.tiers.highest, None)), model)

    def _check_model(self, key: Key, terms: Terms, model: str) -> None:
        allowed = _allowed(key, terms)
        if not _names(allowed, model):
            raise ModelNotFound(
                f"The model {model!r} is not open to this key; it may use {', '.join(allowed) or 'none'}.",
                param="model",
            )

    def _check_context(self, terms: Terms, wish: Wish) -> None:
        most, asked = terms.goals.context, wish.longest_prompt + (wish.max_tokens or 1)
        if most is not None and asked > most:
            more = f" and max_tokens asks for {wish.max_tokens} more" if wish.max_tokens else ""
            raise ContextLengthExceeded(
                f"The context of the tier {terms.tier!r} is {most} tokens; the prompt has {wish.longest_prompt}{more}. "
                "Shorten the prompt or lower max_tokens.",
                param=wish.param,
            )

    async def begin(self, quota: Quota, draws: list[Draw]) -> None:
        """Let buckets that outlast a process begin with what the ledger says was used before it."""
        for draw in draws:
            limit = draw.limit
            if limit.key in self._begun or limit.period < DAY:
                continue
            await self.limits.preset(limit, await self._used_before(quota, limit))
            self._begun.add(limit.key)

    async def charge(self, project: Project, billed: int) -> None:
        """Take from the month's budget what is billed beside requests (nano-dollars), before the ledger knows of it."""
        if project.budget is None or not billed:
            return
        quota = Quota(project, self.tiers.terms(project.tier or self.tiers.highest, None))
        draw = Draw(quota.budget(project.budget), billed)
        with suppress(Unavailable):  # the ledger is what counts when the bucket begins anew
            await self.begin(quota, [draw])
            await self.limits.settle([draw])

    async def _used_before(self, quota: Quota, limit: Limit) -> int:
        """Of a day's limit or a month's budget, by the ledger."""
        budget = f"/{BUDGET}/" in limit.key
        async with self._database.read() as session:
            if budget:
                return (await spent(session, quota.project.id, month_began())).cost
            rows = await totals(
                session,
                now() - int(DAY),
                FAR,
                group_by=("terms",),
                project_id=quota.project.id,
                tier=quota.terms.tier,
            )
        rows = [row for row in rows if (row.group["terms"] == BATCH) == quota.batch]
        if "requests" in limit.key:
            return sum(row.requests for row in rows)
        return sum(row.prompt_tokens - row.cached_tokens + row.generated_tokens for row in rows)


def _allowed(key: Key, terms: Terms) -> tuple[str, ...]:
    return terms.goals.models if key.models is None else key.models


def _names(allowed: tuple[str, ...], model: str) -> bool:
    return "*" in allowed or model in allowed
