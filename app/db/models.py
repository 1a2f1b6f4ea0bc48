"""The tables. Times are epoch seconds by the database's clock (`app/clock.py`)."""

from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, Integer, MetaData, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.clock import db_now
from app.db.types import CleanJSON, CleanText

ID_LENGTH = 36
"""A UUID as text."""
SHORT = 255
"""Characters of a name, an owner, a token."""

RowNumber = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    """The end, good or bad: `Request.result_status` says which."""


class Stage(StrEnum):
    PREPARE = "prepare"
    TRAIN = "train"
    """On the GPU; a generation calls it otherwise (`Mode.gpu_stage`)."""


class Priority(StrEnum):
    """fal's two. `RANK` orders them."""

    NORMAL = "normal"
    LOW = "low"


class Purpose(StrEnum):
    """What a request is for."""

    TRAIN = "train"
    """The mode's work, whichever."""
    CHECK = "check"
    """A report on its files, and nothing else: ends after the prepare stage."""


RANK = {Priority.NORMAL: 0, Priority.LOW: 1}


class Outcome(StrEnum):
    """How an attempt ended; NULL while it runs."""

    ADVANCED = "advanced"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRIED = "retried"
    RELEASED = "released"
    CANCELLED = "cancelled"
    LOST = "lost"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


_IDEMPOTENT = "idempotency_key IS NOT NULL"
_HASHED = "body_sha256 IS NOT NULL"
_QUEUED = "state = 'queued'"
_WEBHOOK_DUE = "webhook_next_at IS NOT NULL"
LANDMARK = "kind <> 'step'"
_KEPT = "expired_at IS NULL AND finished_at IS NOT NULL"


def _partial(name: str, *columns: str, where: str) -> Index:
    """An index of the rows that matter: it stays small however many have ended."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Request(Base):
    """One submitted request: the truth about it, whatever the broker believes."""

    __tablename__ = "requests"

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    """The order of submission: two requests of one millisecond still have one."""
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    owner: Mapped[str] = mapped_column(String(SHORT))
    endpoint: Mapped[str] = mapped_column(String(SHORT))
    """The mode's id, such as ``fal-ai/ltx23-trainer-v2/t2v``."""
    app: Mapped[str] = mapped_column(String(SHORT))
    """The endpoint's first two parts: all that fal's status URLs keep of it."""
    mode: Mapped[str] = mapped_column(String(SHORT))
    """The mode's path, such as ``t2v``."""
    input: Mapped[dict[str, Any]] = mapped_column(CleanJSON)
    """As validated, every default filled in: a later change of a default changes no old request."""

    purpose: Mapped[str] = mapped_column(
        String(16), default=Purpose.TRAIN, server_default=Purpose.TRAIN
    )

    priority: Mapped[int] = mapped_column(Integer, default=0)
    start_deadline: Mapped[float | None] = mapped_column(Float)
    no_retry: Mapped[bool] = mapped_column(default=False)
    idempotency_key: Mapped[str | None] = mapped_column(String(SHORT))
    body_sha256: Mapped[str | None] = mapped_column(String(64))
    """Of endpoint and input, hexadecimal: tells a repeated submit from another one."""
    webhook_url: Mapped[str | None] = mapped_column(CleanText)
    webhook_next_at: Mapped[float | None] = mapped_column(Float)
    """When its next delivery is due; NULL: none is (not ended, delivered, or given up)."""
    webhook_tries: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    tags: Mapped[dict[str, Any]] = mapped_column(CleanJSON, default=dict)

    state: Mapped[str] = mapped_column(String(16), default=State.QUEUED)
    stage: Mapped[str] = mapped_column(String(16), default=Stage.PREPARE)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    """How often it was claimed, over both stages. Never reused, so it may name a folder."""
    attempts_used: Mapped[int] = mapped_column(Integer, default=0)
    """Attempts of this stage that were begun and not given back."""
    lease_token: Mapped[str | None] = mapped_column(String(SHORT))
    lease_expires_at: Mapped[float | None] = mapped_column(Float)
    worker: Mapped[str | None] = mapped_column(String(SHORT))
    cancel_requested_at: Mapped[float | None] = mapped_column(Float)
    save_wanted_at: Mapped[float | None] = mapped_column(Float)
    sample_wanted_at: Mapped[float | None] = mapped_column(Float)
    """Wishes of `trainer.spec.Wish` that wait to be granted; NULL: none does."""

    woken_at: Mapped[float | None] = mapped_column(Float)
    """When a wake-up was last sent for this stage; NULL: one is due."""
    wakes: Mapped[int] = mapped_column(Integer, default=0)

    created_at: Mapped[float] = mapped_column(Float, default=db_now())
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    expired_at: Mapped[float | None] = mapped_column(Float)
    """When retention removed its input, result, log and files; the row stays to say so."""

    storage_prefix: Mapped[str] = mapped_column(String(SHORT))
    """``requests/{id}-{128 random bits}``: everything this request stores lies below it."""
    prepared: Mapped[dict[str, Any] | None] = mapped_column(CleanJSON)
    """What the prepare stage hands to the train stage."""
    progress: Mapped[dict[str, Any] | None] = mapped_column(CleanJSON)
    """``stage``, ``step``, ``of``, ``loss``, ``eta_s``: whatever of it is known."""

    result_status: Mapped[int | None] = mapped_column(Integer)
    result_body: Mapped[dict[str, Any] | None] = mapped_column(CleanJSON)
    error: Mapped[str | None] = mapped_column(CleanText)
    error_type: Mapped[str | None] = mapped_column(String(SHORT))
    billable_units: Mapped[int | None] = mapped_column(Integer)
    inference_time: Mapped[float | None] = mapped_column(Float)

    __table_args__ = (
        Index("ix_requests_queue", "state", "stage", "priority", "number"),
        Index(
            "ix_requests_leases",
            "lease_expires_at",
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        Index("ix_requests_owner", "owner", "number"),
        _partial(
            "ix_requests_turns", "state", "owner", "stage", "priority", "number", where=_QUEUED
        ),
        _partial("ix_requests_idempotency", "owner", "idempotency_key", where=_IDEMPOTENT),
        _partial("ix_requests_body", "owner", "body_sha256", "created_at", where=_HASHED),
        _partial("ix_requests_webhooks", "webhook_next_at", where=_WEBHOOK_DUE),
        _partial("ix_requests_retention", "finished_at", where=_KEPT),
    )


class Turn(Base):
    """When an owner was last given a worker of a stage (`app/requests/turns.py`)."""

    __tablename__ = "turns"

    owner: Mapped[str] = mapped_column(String(SHORT), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16), primary_key=True)
    taken: Mapped[int] = mapped_column(BigInteger)
    """Counts the claims of the stage: the greatest was the last."""


class Attempt(Base):
    """One claim of one request by one worker."""

    __tablename__ = "attempts"

    token: Mapped[str] = mapped_column(String(SHORT), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    stage: Mapped[str] = mapped_column(String(16))
    worker: Mapped[str] = mapped_column(String(SHORT))
    started_at: Mapped[float] = mapped_column(Float, default=db_now())
    ended_at: Mapped[float | None] = mapped_column(Float)
    outcome: Mapped[str | None] = mapped_column(String(16))
    detail: Mapped[str | None] = mapped_column(CleanText)

    __table_args__ = (Index("uq_attempts_request_number", "request_id", "number", unique=True),)


class LogLine(Base):
    """One line of a request's log, for its user."""

    __tablename__ = "log_lines"

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    ts: Mapped[float] = mapped_column(Float, default=db_now())
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(CleanText)

    __table_args__ = (Index("ix_log_lines_request", "request_id", "id"),)


class Event(Base):
    """One event of a request: a step with its loss, a preview, a stage (`preprocessing.events`)."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    ts: Mapped[float] = mapped_column(Float, default=db_now())
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(CleanJSON)

    __table_args__ = (
        Index("ix_events_request", "request_id", "id"),
        # A training has thousands of steps and a few of everything else.
        _partial("ix_events_landmarks", "request_id", "id", where=LANDMARK),
    )


class ApiKey(Base):
    """A key that may use the service. The key itself is stored nowhere."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Also the owner's name in other tables."""
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the key, hexadecimal."""
    name: Mapped[str] = mapped_column(CleanText)
    created_at: Mapped[float] = mapped_column(Float, default=db_now())
    revoked_at: Mapped[float | None] = mapped_column(Float)
    max_queued: Mapped[int | None] = mapped_column(Integer)
    """Limits; NULL: none."""
    max_running: Mapped[int | None] = mapped_column(Integer)
    max_storage_bytes: Mapped[int | None] = mapped_column(BigInteger)


class BrowserSession(Base):
    """A browser that has logged in with a key (`app/sessions.py`)."""

    __tablename__ = "browser_sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of its cookie, hexadecimal."""
    owner: Mapped[str] = mapped_column(String(SHORT), index=True)
    expires_at: Mapped[float] = mapped_column(Float)


class Upload(Base):
    """A file that a user stored, and whose it is."""

    __tablename__ = "uploads"

    key: Mapped[str] = mapped_column(String(512), primary_key=True)
    owner: Mapped[str] = mapped_column(String(SHORT), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Counted against the owner's limit from before the first byte is written."""
    created_at: Mapped[float] = mapped_column(Float, default=db_now(), index=True)
    stored_at: Mapped[float | None] = mapped_column(Float)
    """NULL: not whole yet."""


class SigningKey(Base):
    """An Ed25519 key that signs webhooks."""

    __tablename__ = "signing_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    private: Mapped[str] = mapped_column(CleanText)
    """The 32 bytes, encrypted (`app/webhooks/keys.py`), in base64."""
    created_at: Mapped[float] = mapped_column(Float, default=db_now())
    signs_from: Mapped[float] = mapped_column(Float)
    """Published before that, so that receivers know it when it is first used."""
    retired_at: Mapped[float | None] = mapped_column(Float)
    """It signs no more; published for a while longer."""


class WebhookAttempt(Base):
    """One delivery of one request's webhook, whatever came of it."""

    __tablename__ = "webhook_attempts"

    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[float] = mapped_column(Float, default=db_now())
    seconds: Mapped[float | None] = mapped_column(Float)
    status: Mapped[int | None] = mapped_column(Integer)
    """The receiver's; NULL: no answer."""
    error: Mapped[str | None] = mapped_column(CleanText)

    __table_args__ = (Index("ix_webhook_attempts_request", "request_id", "id"),)


class Worker(Base):
    """A worker process as it last said of itself (`workers/presence.py`)."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(SHORT), primary_key=True)
    """As in `Request.worker`."""
    queue: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[float] = mapped_column(Float, default=db_now())
    seen_at: Mapped[float] = mapped_column(Float, default=db_now())
    facts: Mapped[dict[str, Any]] = mapped_column(CleanJSON, default=dict)
    """What is known of ``device``, ``memory_total_bytes``, ``memory_used_bytes``,
    ``load_percent``, and what its machine ``lacks``."""
