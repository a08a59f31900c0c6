"""Projects: who owns quota, keys, jobs and the bill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from coserve.errors import Conflict, InvalidRequest, NotFound
from coserve.service.auth.audit import COMMAND_LINE, record
from coserve.service.database import Database
from coserve.service.ids import new_id, now
from coserve.service.money import usd
from coserve.service.tables import DEFAULT_PROJECT, ProjectRow
from coserve.service.tiers import Limits
from coserve.service.yaml_file import LARGEST

LARGEST_BUDGET = LARGEST  # nano-dollars
WEIGHTS = (1e-6, 1e6)  # the smallest and the largest: sums of what shares were served stay exact enough
OF_TIER = "tier"
"""In place of a limit: the project's own goes, the tier's holds again."""


@dataclass(frozen=True)
class Project:
    id: str
    name: str = ""
    tier: str | None = None  # None: the highest there is
    weight: float = 1.0  # its share of the chip among the projects of a priority
    budget: int | None = None  # nano-dollars a calendar month
    limits: Mapping[str, int | None] = field(default_factory=dict)  # in place of the tier's, by name
    archived: bool = False

    @classmethod
    def of(cls, row: ProjectRow) -> Project:
        return cls(row.id, row.name, row.tier, row.weight, row.budget, row.limits, row.archived_at is not None)


@dataclass(frozen=True)
class NewProject:
    """What a project is to be. Raises `InvalidRequest` for what cannot be."""

    name: str
    tier: str | None = None
    weight: float = 1.0
    budget: int | None = None  # nano-dollars a calendar month
    limits: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not WEIGHTS[0] <= self.weight <= WEIGHTS[1]:
            raise InvalidRequest(
                f"'weight' must be from {WEIGHTS[0]:g} to {WEIGHTS[1]:.0f}, not {self.weight:g}.", param="weight"
            )
        if self.budget is not None and not 0 <= self.budget <= LARGEST_BUDGET:
            raise InvalidRequest(
                f"'budget' must be from 0 to {usd(LARGEST_BUDGET):.0f} USD, not {usd(self.budget):g}.", param="budget"
            )
        check_limits(self.limits)


def check_name(name: str) -> None:
    """Raises `InvalidRequest` for a name that could not be shown."""
    if not (0 < len(name) <= 200 and name.isprintable()):
        raise InvalidRequest("'name' must have 1 to 200 characters, all of them visible.", param="name")


def check_limits(limits: Mapping[str, int | None]) -> None:
    """Raises `InvalidRequest` for a name that is no limit, or a value that is none."""
    for name, value in limits.items():
        if name not in Limits.model_fields:
            raise InvalidRequest(f"{name!r} is no limit; there are {', '.join(Limits.model_fields)}.", param="limits")
        if value is not None and not (type(value) is int and 0 < value <= LARGEST):
            raise InvalidRequest(
                f"'{name}' must be a whole number from 1 to {LARGEST}, or null for no limit.", param=name
            )


async def find_project(session: AsyncSession, project_id: str, *, archived: bool = False) -> ProjectRow:
    """Raises `NotFound` for one that is not there, `Conflict` for an archived one unless that will do."""
    row = await session.scalar(select(ProjectRow).where(ProjectRow.id == project_id))
    if row is None:
        raise NotFound(f"There is no project {project_id!r}.", param="project")
    if row.archived_at is not None and not archived:
        raise Conflict(f"The project {project_id!r} is archived.", code="project_archived")
    return row


async def list_projects(database: Database, *, archived: bool = False) -> list[ProjectRow]:
    """Oldest first."""
    query = select(ProjectRow).order_by(ProjectRow.seq)
    async with database.read() as session:
        return list(await session.scalars(query if archived else query.where(ProjectRow.archived_at.is_(None))))


async def make_project(database: Database, new: NewProject, actor: str = COMMAND_LINE) -> ProjectRow:
    row = ProjectRow(
        id=new_id("proj"),
        name=new.name,
        tier=new.tier,
        weight=new.weight,
        budget=new.budget,
        limits=dict(new.limits),
        created_at=now(),
        archived_at=None,
    )
    async with database.write() as session:
        session.add(row)
        record(session, actor, "project.created", row.id, _told(vars(new)))
    return row


async def change_project(
    database: Database, project_id: str, change: Mapping[str, Any], actor: str = COMMAND_LINE
) -> ProjectRow:
    """`change` has fields of `NewProject`; limits are merged, `OF_TIER` takes one away.

    Raises what `NewProject` raises; `NotFound`, `Conflict`.
    """
    async with database.write() as session:
        row = await find_project(session, project_id)
        present = {name: getattr(row, name) for name in ("name", "tier", "weight", "budget")}
        limits = {**row.limits, **change.get("limits", {})}
        own = {name: value for name, value in limits.items() if value != OF_TIER}
        new = NewProject(**{**present, **change, "limits": own})
        row.name, row.tier, row.weight = new.name, new.tier, new.weight
        row.budget, row.limits = new.budget, dict(new.limits)
        record(session, actor, "project.updated", project_id, _told(change))
    return row


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `NewProject` as the audit log tells them: the budget in USD."""
    told = dict(fields)
    if told.get("budget") is not None:
        told["budget"] = usd(told["budget"])
    return told


async def archive_project(database: Database, project_id: str, actor: str = COMMAND_LINE) -> ProjectRow:
    """Its keys open nothing any more; its bill stays. Raises `NotFound`, `Conflict` for the default project."""
    if project_id == DEFAULT_PROJECT:
        raise Conflict("The default project cannot be archived.", code="default_project")
    async with database.write() as session:
        row = await find_project(session, project_id)
        row.archived_at = now()
        record(session, actor, "project.archived", project_id, {"name": row.name})
    return row
