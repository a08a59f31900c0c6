"""The audit log: who changed which key or project, when."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from coserve.service.ids import new_id, now
from coserve.service.tables import AuditRow

COMMAND_LINE = "command line"


def record(session: AsyncSession, actor: str, type: str, object_id: str, data: dict[str, Any]) -> None:
    """Add a row to the caller's transaction: what is told here happened, and what happened is told."""
    row = AuditRow(id=new_id("audit"), created_at=now(), actor=actor, type=type, object_id=object_id, data=data)
    session.add(row)
