"""A time's usage, revenue and cost, read at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.errors import Unavailable
from coserve.service.database import Database, DatabaseError, reason
from coserve.service.ledger.days import DAY
from coserve.service.ledger.dialect import POSTGRESQL, dialect
from coserve.service.ledger.totals import Totals, totals
from coserve.service.tables import ChipHourRow, ProjectRow

GROUPS = ("tier", "project_id", "model", "adapter", "endpoint", "upstream")


@dataclass(frozen=True)
class Use:
    """Tokens and money of one tier, project, model, upstream or day."""

    name: str
    requests: int = 0
    input: int = 0  # tokens
    cached: int = 0  # of the input
    output: int = 0
    trained: int = 0
    inference_revenue: int = 0  # nano-dollars
    training_revenue: int = 0
    upstream_cost: int = 0  # what upstreams took

    @property
    def revenue(self) -> int:
        return self.inference_revenue + self.training_revenue

    @property
    def tokens(self) -> int:
        """Of inference."""
        return self.input + self.output

    def plus(self, more: Totals) -> Use:
        training = more.trained_tokens > 0
        return Use(
            self.name,
            self.requests + more.requests,
            self.input + more.prompt_tokens,
            self.cached + more.cached_tokens,
            self.output + more.completion_tokens,
            self.trained + more.trained_tokens,
            self.inference_revenue + (0 if training else more.cost),
            self.training_revenue + (more.cost if training else 0),
            self.upstream_cost + more.upstream_cost,
        )


@dataclass(frozen=True)
class ChipUse:
    """Seconds of a chip, and what they cost."""

    name: str
    inference: float = 0.0  # seconds
    training: float = 0.0
    idle: float = 0.0
    cost: int | None = 0  # nano-dollars; None: nobody knows

    @property
    def seconds(self) -> float:
        return self.inference + self.training + self.idle

    def plus(self, more: ChipUse) -> ChipUse:
        cost = None if self.cost is None or more.cost is None else self.cost + more.cost
        return ChipUse(
            self.name, self.inference + more.inference, self.training + more.training, self.idle + more.idle, cost
        )

    def shares(self) -> tuple[float, float, float]:
        """Of inference, training, nothing."""
        whole = self.seconds or 1.0
        return self.inference / whole, self.training / whole, self.idle / whole


@dataclass(frozen=True)
class Report:
    """From `start` to before `end` (seconds since 1970). Tiers, projects, models,
    upstreams: the largest revenue first."""

    start: int
    end: int
    whole: Use
    tiers: tuple[Use, ...]
    projects: tuple[Use, ...]
    models: tuple[Use, ...]
    upstreams: tuple[Use, ...]  # without this server's own chips
    days: tuple[tuple[int, Use], ...]  # by their first second
    chips: tuple[ChipUse, ...]
    chip_days: tuple[tuple[int, ChipUse], ...]

    @property
    def all_chips(self) -> ChipUse:
        whole = ChipUse("all")
        for chip in self.chips:
            whole = whole.plus(chip)
        return whole

    @property
    def cost(self) -> int | None:
        """Nano-dollars, of chips and upstreams; None if it is unknown: no hour of a chip is on record, or one without a
        price."""
        chips = self.all_chips.cost if self.chips else None
        return None if chips is None else chips + self.whole.upstream_cost

    @property
    def margin(self) -> float | None:
        """What is left of the revenue, as a share of it."""
        if self.cost is None or not self.whole.revenue:
            return None
        return (self.whole.revenue - self.cost) / self.whole.revenue

    @property
    def coverage(self) -> float | None:
        """How many times the revenue of inference pays for all of it. None: unknown, or it costs nothing."""
        return self.whole.inference_revenue / self.cost if self.cost else None

    def per_million(self, amount: int | None) -> float | None:
        """Dollars for a million tokens of inference, input and output, of so many nano-dollars."""
        return None if amount is None or not self.whole.tokens else amount / 1e3 / self.whole.tokens


async def read_report(database: Database, start: int, end: int, chip_price: int | None = None) -> Report:
    """`chip_price` (nano-dollars an hour) counts in the place of those on record.

    Raises `DatabaseError` if the database cannot be read.
    """
    try:
        async with database.read() as session:
            return await _read(session, start, end, chip_price)
    except (SQLAlchemyError, OSError, Unavailable) as error:
        raise DatabaseError(f"The database cannot be read: {reason(error)}.") from error


async def _read(session: AsyncSession, start: int, end: int, chip_price: int | None) -> Report:
    if dialect(session) == POSTGRESQL:  # all of one moment, as in SQLite
        await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    usage = await totals(session, start, end, group_by=GROUPS, width="day")
    names = {row.id: row.name for row in await session.scalars(select(ProjectRow))}
    in_time = (ChipHourRow.hour >= start, ChipHourRow.hour < end)
    hours = list(await session.scalars(select(ChipHourRow).where(*in_time).order_by(ChipHourRow.hour)))
    uses = [(hour.hour // DAY * DAY, _chip_use(hour, chip_price)) for hour in hours]
    return Report(
        start,
        end,
        whole=_sum("all", usage),
        tiers=_by(usage, lambda one: one.group["tier"]),
        projects=_by(usage, lambda one: _project_name(names, one.group["project_id"])),
        models=_by(usage, lambda one: one.group["adapter"] or one.group["model"]),
        upstreams=_by([one for one in usage if one.group["upstream"]], lambda one: one.group["upstream"]),
        days=tuple((day, _sum("", (one for one in usage if one.start // DAY * DAY == day))) for day in _days(usage)),
        chips=tuple(_sum_chips(name, uses) for name in sorted({use.name for _, use in uses})),
        chip_days=_chips_by_day(uses),
    )


def _project_name(names: dict[str, str], id: str | None) -> str:
    name = names.get(id or "")
    return f"{name} ({id})" if name else id or ""


def _sum(name: str, usage: Iterable[Totals]) -> Use:
    use = Use(name)
    for one in usage:
        use = use.plus(one)
    return use


def _by(usage: list[Totals], key: Callable[[Totals], str | None]) -> tuple[Use, ...]:
    uses: dict[str, Use] = {}
    for one in usage:
        name = key(one) or ""
        uses[name] = uses.get(name, Use(name)).plus(one)
    return tuple(sorted(uses.values(), key=lambda use: (-use.revenue, -use.tokens, use.name)))


def _days(usage: list[Totals]) -> list[int]:
    return sorted({one.start // DAY * DAY for one in usage})


def _chip_use(row: ChipHourRow, chip_price: int | None) -> ChipUse:
    use = ChipUse(row.chip, row.inference_seconds, row.training_seconds, row.idle_seconds)
    price = row.price if chip_price is None else chip_price
    known = chip_price is not None or row.price > 0 or not use.seconds
    cost = int((Decimal(use.seconds) * price / 3600).to_integral_value(ROUND_HALF_EVEN)) if known else None
    return ChipUse(use.name, use.inference, use.training, use.idle, cost)


def _sum_chips(name: str, uses: Iterable[tuple[int, ChipUse]]) -> ChipUse:
    whole = ChipUse(name)
    for _, use in uses:
        if use.name == name:
            whole = whole.plus(use)
    return whole


def _chips_by_day(uses: list[tuple[int, ChipUse]]) -> tuple[tuple[int, ChipUse], ...]:
    days: dict[int, ChipUse] = {}
    for day, use in uses:
        days[day] = days.get(day, ChipUse("all")).plus(use)
    return tuple(sorted(days.items()))
