"""What a running training is asked for: a checkpoint now, previews now."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WISHES = ("save_wanted_at", "sample_wanted_at")


def upgrade() -> None:
    for name in WISHES:
        op.add_column("requests", sa.Column(name, sa.Float(), nullable=True))


def downgrade() -> None:
    for name in reversed(WISHES):
        op.drop_column("requests", name)
