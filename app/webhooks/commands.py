"""`reelsmith webhooks`: what was sent, send it again, and the keys that sign it."""

import contextlib
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.db.models import Request, State, WebhookAttempt
from app.settings import Settings

webhooks = typer.Typer(
    name="webhooks",
    help="Webhooks: what was sent, send it again, and the keys that sign it.",
    no_args_is_help=True,
)
# The imports inside keep `reelsmith --help` quick.


@webhooks.command("list")
def list_deliveries(
    request_id: Annotated[
        str | None, typer.Argument(help="show every attempt of this request")
    ] = None,
) -> None:
    """The newest requests with a webhook, or all attempts of one."""
    from app.webhooks import deliveries

    with _reading() as session:
        rows = deliveries.recent(session, request_id)
        attempts = deliveries.attempts(session, [row.id for row in rows])
    if request_id is not None and not rows:
        _refuse(f"No request {request_id} has a webhook.")
    if not rows:
        typer.echo("no request has a webhook yet", err=True)
    for row in rows:
        typer.echo(f"{row.id}  {_state(row, attempts[row.id])}  {_shown(row.webhook_url)}")
        if request_id is not None:
            for attempt in attempts[row.id]:
                typer.echo(f"  {attempt.number}  {iso8601(attempt.started_at)}  {_ended(attempt)}")


@webhooks.command()
def redeliver(
    request_id: Annotated[str, typer.Argument(help="a request that has ended")],
) -> None:
    """Send a request's webhook again; a running gateway does so within a second or two."""
    from app.webhooks import deliveries

    try:
        with _writing() as session:
            deliveries.redeliver(session, request_id)
    except deliveries.RedeliveryRefused as error:
        _refuse(str(error))
    typer.echo(f"the webhook of {request_id} is due now")


@webhooks.command()
def rotate(
    leaked: Annotated[
        bool,
        typer.Option(
            "--leaked",
            help="the old keys are known to others: withdraw them at once. Receivers refuse "
            "webhooks until they have read the JWKS again",
        ),
    ] = False,
) -> None:
    """Publish a new signing key; it signs a day later, and the old one stays published for
    another day."""
    from app.webhooks.keys import KeyRing, RotationRefused

    ring = KeyRing.of(Settings())
    try:
        with _writing() as session:
            key = ring.replace(session) if leaked else ring.rotate(session)
    except RotationRefused as error:
        _refuse(str(error))
    typer.echo(f"key {key.id} signs from {iso8601(key.signs_from)}")


@webhooks.command()
def keys() -> None:
    """The keys that receivers are told of, and which one signs."""
    from app.webhooks.keys import KeyRing

    ring = KeyRing.of(Settings())
    with _reading() as session:
        published, signing = ring.published(session), ring.signing(session)
    if not published:
        typer.echo("no key yet; the first webhook makes one")
    for key in published:
        retires = "" if key.retired_at is None else f", until {iso8601(key.retired_at)}"
        now = "  (signs now)" if signing is not None and key.id == signing.id else ""
        typer.echo(
            f"{key.id}  {key.jwk()['x']}  signs from {iso8601(key.signs_from)}{retires}{now}"
        )


def _state(row: Request, attempts: list[WebhookAttempt]) -> str:
    if row.state != State.COMPLETED:
        return "waits for the request's end"
    if row.webhook_next_at is not None:
        due = iso8601(row.webhook_next_at)
        if attempts and _open(attempts[-1]):
            return f"attempt {row.webhook_tries} under way (if it breaks off, again at {due})"
        return f"attempt {row.webhook_tries + 1} due at {due}"
    if not attempts:
        return "not sent"
    return "delivered" if _delivered(attempts[-1]) else "given up"


def _ended(attempt: WebhookAttempt) -> str:
    if _open(attempt):
        return "under way, or broken off with its gateway"
    took = "" if attempt.seconds is None else f" after {attempt.seconds:.2f} s"
    return f"{'delivered' if _delivered(attempt) else attempt.error}{took}"


def _open(attempt: WebhookAttempt) -> bool:
    return attempt.status is None and attempt.error is None


def _delivered(attempt: WebhookAttempt) -> bool:
    return attempt.status is not None and attempt.error is None


def _shown(url: str | None) -> str:
    """Without its query, which may hold the receiver's secret."""
    return (url or "").partition("?")[0]


@contextlib.contextmanager
def _reading() -> Iterator[Session]:
    from app.db.engine import Database

    database = Database(Settings().database_url)
    try:
        with database.read() as session:
            yield session
    finally:
        database.close()


@contextlib.contextmanager
def _writing() -> Iterator[Session]:
    from app.db.engine import Database

    database = Database(Settings().database_url)
    try:
        with database.write() as session:
            yield session
    finally:
        database.close()


def _refuse(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(1)
