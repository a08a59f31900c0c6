"""Keys, files, fine-tuning jobs with their events and checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _seq() -> sa.Column:
    return sa.Column("seq", SEQ, primary_key=True, autoincrement=True)


def _id() -> sa.Column:
    return sa.Column("id", sa.String(64), nullable=False, unique=True)


def _created_at() -> sa.Column:
    return sa.Column("created_at", sa.BigInteger(), nullable=False)


def _job_id() -> sa.Column:
    return sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False, index=True)


def upgrade() -> None:
    op.create_table(
        "keys",
        _seq(),
        _id(),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("prefix", sa.String(32), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        _created_at(),
        sa.Column("revoked_at", sa.BigInteger()),
    )
    op.create_table(
        "files",
        _seq(),
        _id(),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(64), nullable=False, index=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        _created_at(),
    )
    op.create_table(
        "jobs",
        _seq(),
        _id(),
        _created_at(),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("estimated_finish", sa.BigInteger()),
        sa.Column("status", sa.String(32), nullable=False, index=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("suffix", sa.String(64)),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("hyperparameters", sa.JSON(), nullable=False),
        sa.Column("training_file", sa.String(64), nullable=False),
        sa.Column("validation_file", sa.String(64)),
        sa.Column("fine_tuned_model", sa.Text(), nullable=False, unique=True),
        sa.Column("adapter_path", sa.Text()),
        sa.Column("model_deleted_at", sa.BigInteger()),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=False),
        sa.Column("result_files", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON()),
        sa.Column("labels", sa.JSON()),
    )
    op.create_table(
        "job_events",
        _seq(),
        _id(),
        _job_id(),
        _created_at(),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
    )
    op.create_table(
        "job_checkpoints",
        _seq(),
        _id(),
        _job_id(),
        _created_at(),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.UniqueConstraint("job_id", "step"),
    )
