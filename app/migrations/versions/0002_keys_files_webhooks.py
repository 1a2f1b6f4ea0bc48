"""Keys, uploads, webhooks; what a request needs for them, for checks and for retention."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float()),
        sa.Column("max_queued", sa.Integer()),
        sa.Column("max_running", sa.Integer()),
        sa.Column("max_storage_bytes", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    op.create_table(
        "uploads",
        sa.Column("key", sa.String(512), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("stored_at", sa.Float()),
        sa.PrimaryKeyConstraint("key", name="pk_uploads"),
    )
    op.create_index("ix_uploads_owner", "uploads", ["owner"])
    op.create_index("ix_uploads_created_at", "uploads", ["created_at"])
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("private", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("signs_from", sa.Float(), nullable=False),
        sa.Column("retired_at", sa.Float()),
        sa.PrimaryKeyConstraint("id", name="pk_signing_keys"),
    )
    op.create_table(
        "webhook_attempts",
        sa.Column("id", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float()),
        sa.Column("status", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["requests.id"],
            name="fk_webhook_attempts_request_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_attempts"),
    )
    op.create_index("ix_webhook_attempts_request", "webhook_attempts", ["request_id", "id"])
    with op.batch_alter_table("requests") as requests:
        requests.add_column(
            sa.Column("purpose", sa.String(16), nullable=False, server_default="train")
        )
        requests.add_column(sa.Column("idempotency_key", sa.String(255)))
        requests.add_column(sa.Column("body_sha256", sa.String(64)))
        requests.add_column(sa.Column("webhook_next_at", sa.Float()))
        requests.add_column(
            sa.Column("webhook_tries", sa.Integer(), nullable=False, server_default="0")
        )
        requests.add_column(sa.Column("expired_at", sa.Float()))
    for name, columns, where in INDEXES:
        condition = sa.text(where)
        op.create_index(
            name, "requests", columns, sqlite_where=condition, postgresql_where=condition
        )


def downgrade() -> None:
    for name, _, _ in INDEXES:
        op.drop_index(name, "requests")
    with op.batch_alter_table("requests") as requests:
        for column in (
            "expired_at",
            "webhook_tries",
            "webhook_next_at",
            "body_sha256",
            "idempotency_key",
            "purpose",
        ):
            requests.drop_column(column)
    for table in ("webhook_attempts", "signing_keys", "uploads", "api_keys"):
        op.drop_table(table)


INDEXES = (
    ("ix_requests_idempotency", ["owner", "idempotency_key"], "idempotency_key IS NOT NULL"),
    ("ix_requests_body", ["owner", "body_sha256", "created_at"], "body_sha256 IS NOT NULL"),
    ("ix_requests_webhooks", ["webhook_next_at"], "webhook_next_at IS NOT NULL"),
    ("ix_requests_retention", ["finished_at"], "expired_at IS NULL AND finished_at IS NOT NULL"),
)
