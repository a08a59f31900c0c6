"""The database's tables. A change here needs a migration in `migrations/versions`.

`seq` gives the order in which rows were made, as pagination needs it: ids are random, seconds too coarse.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Seq = BigInteger().with_variant(Integer, "sqlite")  # only an INTEGER primary key counts by itself in SQLite


class Table(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
        int: BigInteger,
    }


DEFAULT_PROJECT = "proj-default"


class ProjectRow(Table):
    """Who owns quota, keys, jobs and the bill."""

    __tablename__ = "projects"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    tier: Mapped[str | None] = mapped_column(String(64))  # of its keys; None: the highest there is
    weight: Mapped[float] = mapped_column(Float)  # its share of the chip among the projects of a priority
    budget: Mapped[int | None]  # nano-dollars a calendar month (UTC)
    limits: Mapped[dict[str, Any]]  # by name of a tier's limit, in its place; null is unlimited
    created_at: Mapped[int]
    archived_at: Mapped[int | None]


class KeyRow(Table):
    """An API key: never the key itself, only its keyed hash and the part that may be seen."""

    __tablename__ = "keys"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(32))
    hash: Mapped[str] = mapped_column(String(64), unique=True)  # hexadecimal HMAC-SHA256
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    tier: Mapped[str | None] = mapped_column(String(64))  # None: the project's
    up_to: Mapped[str | None] = mapped_column(String(64))  # the highest tier that it may ask for
    scopes: Mapped[list[str]]
    models: Mapped[list[str] | None]  # None: those of its tier
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]
    last_used_at: Mapped[int | None]  # a minute late at most; nothing that the audit log tells of


class AuditRow(Table):
    """What an administrator did. Keys and projects never change without a row here, in the same transaction."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[int] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(200))  # a key's id, a person as OIDC names them, or "command line"
    type: Mapped[str] = mapped_column(String(64))  # "project.created", "api_key.deleted", ...
    object_id: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]


class UsageRow(Table):
    """One request, or one fine-tuning job: what was delivered, and what it costs."""

    __tablename__ = "usage"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[int] = mapped_column(index=True)  # when it began
    endpoint: Mapped[str] = mapped_column(String(32))  # "chat", "completions", "fine_tuning", ...
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    key_id: Mapped[str] = mapped_column(String(64))
    tier: Mapped[str] = mapped_column(String(64))
    terms: Mapped[str] = mapped_column(String(64))  # "default", "flex", "batch", ...
    model: Mapped[str] = mapped_column(Text)  # the base model
    adapter: Mapped[str | None] = mapped_column(Text)
    upstream: Mapped[str | None] = mapped_column(String(64))  # None: this server's own chip
    batch_id: Mapped[str | None] = mapped_column(String(64))
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]  # of the prompt's
    completion_tokens: Mapped[int]  # delivered
    generated_tokens: Mapped[int]  # delivered or not
    trained_tokens: Mapped[int]
    ttft_ms: Mapped[float | None] = mapped_column(Float)
    latency_ms: Mapped[float] = mapped_column(Float)
    outcome: Mapped[str] = mapped_column(
        String(16)
    )  # "completed", "disconnected", "failed", "interrupted", "cancelled"
    cost: Mapped[int]  # nano-dollars
    upstream_cost: Mapped[int] = mapped_column(server_default="0")  # what the upstream takes for it


class UsageDayRow(Table):
    """Older usage, summed by day: the rows that it sums are gone."""

    __tablename__ = "usage_days"
    __table_args__ = (
        UniqueConstraint("day", "project_id", "key_id", "tier", "terms", "endpoint", "model", "adapter", "upstream"),
    )
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    day: Mapped[int] = mapped_column(index=True)  # its first second
    endpoint: Mapped[str] = mapped_column(String(32))
    project_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(64))
    tier: Mapped[str] = mapped_column(String(64))
    terms: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(500))
    adapter: Mapped[str] = mapped_column(String(500))  # "" for none, as nulls would not be unique
    upstream: Mapped[str] = mapped_column(String(64))
    requests: Mapped[int]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    generated_tokens: Mapped[int]
    trained_tokens: Mapped[int]
    cost: Mapped[int]
    upstream_cost: Mapped[int] = mapped_column(server_default="0")


class ChipHourRow(Table):
    """What a chip did in an hour, and what the hour cost."""

    __tablename__ = "chip_hours"
    hour: Mapped[int] = mapped_column(primary_key=True)  # its first second
    chip: Mapped[str] = mapped_column(String(200), primary_key=True)
    inference_seconds: Mapped[float] = mapped_column(Float)
    training_seconds: Mapped[float] = mapped_column(Float)
    idle_seconds: Mapped[float] = mapped_column(Float)
    price: Mapped[int]  # nano-dollars an hour


class FileRow(Table):
    """A file; its bytes are `home/files/<id>`."""

    __tablename__ = "files"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int]
    created_at: Mapped[int]
    project_id: Mapped[str] = mapped_column(String(64), index=True)


class JobRow(Table):
    """A fine-tuning job; its state on disk is `home/jobs/<id>/`."""

    __tablename__ = "jobs"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    key_id: Mapped[str] = mapped_column(String(64))  # that asked for it
    created_at: Mapped[int]
    finished_at: Mapped[int | None]
    estimated_finish: Mapped[int | None]
    status: Mapped[str] = mapped_column(String(32), index=True)
    model: Mapped[str] = mapped_column(Text)
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    hyperparameters: Mapped[dict[str, Any]]
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    fine_tuned_model: Mapped[str] = mapped_column(Text, unique=True)  # told once the job has succeeded
    adapter_path: Mapped[str | None] = mapped_column(Text)  # below `home`, if it is there
    model_deleted_at: Mapped[int | None]
    trained_tokens: Mapped[int]
    result_files: Mapped[list[str]]
    error: Mapped[dict[str, Any] | None]
    labels: Mapped[dict[str, Any] | None]  # OpenAI's `metadata`, a name that SQLAlchemy keeps for itself


class EventRow(Table):
    __tablename__ = "job_events"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[int]
    level: Mapped[str] = mapped_column(String(16))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class CheckpointRow(Table):
    __tablename__ = "job_checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[int]
    step: Mapped[int]
    metrics: Mapped[dict[str, Any]]


class BatchRow(Table):
    """A batch; its results so far are `home/batches/<id>/`."""

    __tablename__ = "batches"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    key_id: Mapped[str] = mapped_column(String(64))
    endpoint: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(Text)  # the base model that was served when it was made
    input_file: Mapped[str] = mapped_column(String(64))
    output_file: Mapped[str | None] = mapped_column(String(64))
    error_file: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(32), index=True)
    window: Mapped[int]  # seconds
    created_at: Mapped[int]
    times: Mapped[dict[str, Any]]  # seconds since 1970 by OpenAI's names: in_progress_at, completed_at, ...
    total: Mapped[int]
    completed: Mapped[int]
    failed: Mapped[int]
    errors: Mapped[list[dict[str, Any]] | None]
    labels: Mapped[dict[str, Any] | None]
