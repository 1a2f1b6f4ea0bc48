"""Workers as they last said of themselves; quick ways to the events that are no steps."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
    landmark = sa.text("kind <> 'step'")
    op.create_index(
        "ix_events_landmarks",
        "events",
        ["request_id", "id"],
        sqlite_where=landmark,
        postgresql_where=landmark,
    )


def downgrade() -> None:
    op.drop_index("ix_events_landmarks", "events")
    op.drop_table("workers")
