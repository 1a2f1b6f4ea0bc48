"""Owners take turns: when each was last given a worker, and their queued requests in order."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("taken", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "stage", name="pk_turns"),
    )
    op.create_index(
        "ix_requests_turns",
        "requests",
        ["state", "owner", "stage", "priority", "number"],
        sqlite_where=QUEUED,
        postgresql_where=QUEUED,
    )


def downgrade() -> None:
    op.drop_index("ix_requests_turns", "requests")
    op.drop_table("turns")
