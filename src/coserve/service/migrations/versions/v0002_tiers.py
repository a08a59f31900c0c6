"""Projects, tiers' keys, the audit log, the ledger, chips' hours, batches."""

import time
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DEFAULT_PROJECT = "proj-default"


def _seq() -> sa.Column:
    return sa.Column("seq", SEQ, primary_key=True, autoincrement=True)


def _text(name: str, length: int | None = 64, **options: Any) -> sa.Column:
    return sa.Column(name, sa.String(length) if length else sa.Text(), **{"nullable": False, **options})


def _number(name: str, **options: Any) -> sa.Column:
    return sa.Column(name, sa.BigInteger(), **{"nullable": False, **options})


def _float(name: str, **options: Any) -> sa.Column:
    return sa.Column(name, sa.Float(), **{"nullable": False, **options})


def _json(name: str, **options: Any) -> sa.Column:
    return sa.Column(name, sa.JSON(), **{"nullable": False, **options})


def _tokens() -> list[sa.Column]:
    kinds = ("prompt", "cached", "completion", "generated", "trained")
    return [_number(f"{kind}_tokens") for kind in kinds]


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        _seq(),
        _text("id", unique=True),
        _text("name", 200),
        _text("tier", nullable=True),
        _float("weight"),
        _number("budget", nullable=True),
        _json("limits"),
        _number("created_at"),
        _number("archived_at", nullable=True),
    )
    first = {"id": DEFAULT_PROJECT, "name": "Default", "weight": 1.0, "limits": {}, "created_at": int(time.time())}
    op.bulk_insert(projects, [first])
    op.create_table(
        "audit",
        _seq(),
        _text("id", unique=True),
        _number("created_at", index=True),
        _text("actor", 200),
        _text("type"),
        _text("object_id"),
        _json("data"),
    )
    op.create_table(
        "usage",
        _text("id", primary_key=True),
        _number("created_at", index=True),
        _text("endpoint", 32),
        _text("project_id", index=True),
        *(_text(name) for name in ("key_id", "tier", "terms")),
        _text("model", None),
        _text("adapter", None, nullable=True),
        _text("upstream", nullable=True),
        _text("batch_id", nullable=True),
        *_tokens(),
        _float("ttft_ms", nullable=True),
        _float("latency_ms"),
        _text("outcome", 16),
        _number("cost"),
    )
    same = ("day", "project_id", "key_id", "tier", "terms", "endpoint", "model", "adapter", "upstream")
    op.create_table(
        "usage_days",
        _seq(),
        _number("day", index=True),
        _text("endpoint", 32),
        *(_text(name) for name in ("project_id", "key_id", "tier", "terms")),
        _text("model", 500),
        _text("adapter", 500),
        _text("upstream"),
        _number("requests"),
        *_tokens(),
        _number("cost"),
        sa.UniqueConstraint(*same),
    )
    op.create_table(
        "chip_hours",
        _number("hour", primary_key=True, autoincrement=False),
        _text("chip", 200, primary_key=True),
        *(_float(f"{use}_seconds") for use in ("inference", "training", "idle")),
        _number("price"),
    )
    op.create_table(
        "batches",
        _seq(),
        _text("id", unique=True),
        _text("project_id", index=True),
        _text("key_id"),
        _text("endpoint"),
        _text("model", None),
        _text("input_file"),
        _text("output_file", nullable=True),
        _text("error_file", nullable=True),
        _text("status", 32, index=True),
        _number("window"),
        _number("created_at"),
        _json("times"),
        *(_number(name) for name in ("total", "completed", "failed")),
        _json("errors", nullable=True),
        _json("labels", nullable=True),
    )
    _own_what_is_there()


def _own_what_is_there() -> None:
    """Keys, files and jobs of before belong to the default project; its keys may do all that they could."""
    with op.batch_alter_table("keys") as keys:
        keys.add_column(_with_default("project_id", DEFAULT_PROJECT))
        keys.add_column(_text("tier", nullable=True))
        keys.add_column(_text("up_to", nullable=True))
        keys.add_column(sa.Column("scopes", sa.JSON(), nullable=False, server_default='["all"]'))
        keys.add_column(_json("models", nullable=True))
        keys.add_column(_number("expires_at", nullable=True))
        keys.create_foreign_key("fk_keys_project", "projects", ["project_id"], ["id"])
        keys.create_index("ix_keys_project_id", ["project_id"])
    with op.batch_alter_table("files") as files:
        files.add_column(_with_default("project_id", DEFAULT_PROJECT))
        files.create_index("ix_files_project_id", ["project_id"])
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(_with_default("project_id", DEFAULT_PROJECT))
        jobs.add_column(_with_default("key_id", ""))
        jobs.create_index("ix_jobs_project_id", ["project_id"])


def _with_default(name: str, value: str) -> sa.Column:
    return sa.Column(name, sa.String(64), nullable=False, server_default=value)
