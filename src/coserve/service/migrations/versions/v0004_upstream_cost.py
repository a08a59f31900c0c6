"""What upstreams cost."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for table in ("usage", "usage_days"):
        op.add_column(table, sa.Column("upstream_cost", sa.BigInteger(), nullable=False, server_default="0"))
