"""Requests, attempts, log lines, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("endpoint", sa.String(255), nullable=False),
        sa.Column("app", sa.String(255), nullable=False),
        sa.Column("mode", sa.String(255), nullable=False),
        sa.Column("input", JSON, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("start_deadline", sa.Float()),
        sa.Column("no_retry", sa.Boolean(), nullable=False),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempts_used", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.String(255)),
        sa.Column("lease_expires_at", sa.Float()),
        sa.Column("worker", sa.String(255)),
        sa.Column("cancel_requested_at", sa.Float()),
        sa.Column("woken_at", sa.Float()),
        sa.Column("wakes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float()),
        sa.Column("finished_at", sa.Float()),
        sa.Column("storage_prefix", sa.String(255), nullable=False),
        sa.Column("prepared", JSON),
        sa.Column("progress", JSON),
        sa.Column("result_status", sa.Integer()),
        sa.Column("result_body", JSON),
        sa.Column("error", sa.Text()),
        sa.Column("error_type", sa.String(255)),
        sa.Column("billable_units", sa.Integer()),
        sa.Column("inference_time", sa.Float()),
        sa.PrimaryKeyConstraint("number", name="pk_requests"),
        sa.UniqueConstraint("id", name="uq_requests_id"),
    )
    op.create_index("ix_requests_queue", "requests", ["state", "stage", "priority", "number"])
    op.create_index(
        "ix_requests_leases",
        "requests",
        ["lease_expires_at"],
        sqlite_where=RUNNING,
        postgresql_where=RUNNING,
    )
    op.create_index("ix_requests_owner", "requests", ["owner", "number"])

    op.create_table(
        "attempts",
        sa.Column("token", sa.String(255), nullable=False),
        _request_id(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float()),
        sa.Column("outcome", sa.String(16)),
        sa.Column("detail", sa.Text()),
        _of_request("attempts"),
        sa.PrimaryKeyConstraint("token", name="pk_attempts"),
    )
    op.create_index("uq_attempts_request_number", "attempts", ["request_id", "number"], unique=True)

    op.create_table(
        "log_lines",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        _request_id(),
        sa.Column("ts", sa.Float(), nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        _of_request("log_lines"),
        sa.PrimaryKeyConstraint("id", name="pk_log_lines"),
    )
    op.create_index("ix_log_lines_request", "log_lines", ["request_id", "id"])

    op.create_table(
        "events",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        _request_id(),
        sa.Column("ts", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", JSON, nullable=False),
        _of_request("events"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_request", "events", ["request_id", "id"])


def downgrade() -> None:
    for table in ("events", "log_lines", "attempts", "requests"):
        op.drop_table(table)


def _request_id() -> sa.Column[str]:
    return sa.Column("request_id", sa.String(36), nullable=False)


def _of_request(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["request_id"], ["requests.id"], name=f"fk_{table}_request_id", ondelete="CASCADE"
    )
