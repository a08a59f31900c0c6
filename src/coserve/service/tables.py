"""The database's tables. A change here needs a migration in `migrations/versions`.

`seq` gives the order in which rows were made, as pagination needs it: ids are random, seconds too coarse.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Seq = BigInteger().with_variant(Integer, "sqlite")  # only an INTEGER primary key counts by itself in SQLite


class Table(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, int: BigInteger}  # noqa: RUF012


class KeyRow(Table):
    """An API key: never the key itself, only its keyed hash and the part that may be seen."""

    __tablename__ = "keys"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(32))
    hash: Mapped[str] = mapped_column(String(64), unique=True)  # hexadecimal HMAC-SHA256
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]


class FileRow(Table):
    """A file; its bytes are `home/files/<id>`."""

    __tablename__ = "files"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int]
    created_at: Mapped[int]


class JobRow(Table):
    """A fine-tuning job; its state on disk is `home/jobs/<id>/`."""

    __tablename__ = "jobs"
    seq: Mapped[int] = mapped_column(Seq, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
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
