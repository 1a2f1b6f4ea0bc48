"""`reelsmith keys`: makes keys, lists them, changes their limits, revokes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.db.engine import Database
from app.db.migrate import upgrade
from app.db.models import ApiKey
from app.keys import store
from app.keys.sizes import parse_size, show_size
from app.keys.store import MAX_COUNT, MAX_NAME_CHARACTERS, Limits, UnknownKey, Usage
from app.settings import Settings

NO_LIMIT: Final = "none"

keys = typer.Typer(help="API keys and their limits.", no_args_is_help=True)


def _name(text: str) -> str:
    name = text.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise typer.BadParameter(f"a name has 1 to {MAX_NAME_CHARACTERS} printable characters")
    return name


def _limit(parse: Callable[[str], int]) -> Callable[[str], str]:
    """Checks an option that is a number or ``none``; typer keeps it as text."""

    def check(text: str) -> str:
        try:
            if text != NO_LIMIT:
                parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return text

    return check


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_COUNT):
        raise ValueError(f"{text!r} is not a number of requests; write 0 or more, or {NO_LIMIT}")
    return int(text)


KeyId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
MaxQueued = Annotated[
    str | None,
    typer.Option(metavar="N", parser=_limit(_count), help="requests that wait", show_default=False),
]
MaxRunning = Annotated[
    str | None,
    typer.Option(metavar="N", parser=_limit(_count), help="requests that run", show_default=False),
]
MaxStorage = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", parser=_limit(parse_size), help="uploads, as 50GB", show_default=False
    ),
]


@keys.command()
def create(
    name: Annotated[str, typer.Option(parser=_name, metavar="NAME", help="whose it is")],
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    max_storage: MaxStorage = None,
) -> None:
    """Make a key and print it: this once, for it is stored nowhere."""
    limits = Limits(**_given(max_queued, max_running, max_storage))
    with _transaction() as session:
        id, key = store.create(session, name, limits)
    # The key alone on stdout, so that `FAL_KEY=$(reelsmith keys create ...)` works.
    typer.echo(f"id: {id}. The key is shown this once; keep it:", err=True)
    typer.echo(key)


@keys.command("list")
def list_keys() -> None:
    """Show the keys of the database, their limits and what they use now."""
    with _transaction() as session:
        found, used = store.every(session), store.usage(session)
    table = Table("id", "name", "made", "queued", "running", "uploads", "state", box=None)
    for key in found:
        table.add_row(*_cells(key, used.get(key.id, Usage())))
    # As wide as it needs: cut ids are of no use, and a pipe has no width.
    Console(width=400, highlight=False).print(table if found else "There are no keys.")
    if num_more := len(Settings().api_keys):
        typer.echo(f"{num_more} more in REELSMITH_API_KEYS, without limits.")


@keys.command()
def revoke(id: KeyId) -> None:
    """Refuse a key from now on; gateways learn of it in 2 seconds. What it submitted goes on."""
    with _transaction() as session:
        store.revoke(session, id)
    typer.echo(f"{id} is revoked")


@keys.command()
def limits(
    id: KeyId,
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    max_storage: MaxStorage = None,
) -> None:
    """Change limits; ``none`` removes one, and those not named stay."""
    changes = _given(max_queued, max_running, max_storage)
    with _transaction() as session:
        key = store.set_limits(session, id, **changes) if changes else store.get(session, id)
        lines = [
            f"max queued: {_shown(key.max_queued)}",
            f"max running: {_shown(key.max_running)}",
            f"max storage: {_shown(key.max_storage_bytes, show_size)}",
        ]
    typer.echo("\n".join(lines))


@contextmanager
def _transaction() -> Iterator[Session]:
    """On the database of the settings, brought to this version's tables: keys can be made before
    the service first starts. An unknown id ends the command."""
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    database = Database(settings.database_url)
    try:
        with database.write() as session:
            yield session
    except UnknownKey as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    finally:
        database.close()


def _given(
    max_queued: str | None, max_running: str | None, max_storage: str | None
) -> dict[str, int | None]:
    """The limits that were named, as fields of `Limits`."""
    options: list[tuple[str, str | None, Callable[[str], int]]] = [
        ("max_queued", max_queued, _count),
        ("max_running", max_running, _count),
        ("max_storage_bytes", max_storage, parse_size),
    ]
    return {
        name: None if text == NO_LIMIT else parse(text)
        for name, text, parse in options
        if text is not None
    }


def _cells(key: ApiKey, usage: Usage) -> list[Text]:
    revoked = key.revoked_at is not None
    return [
        # Not as markup: a name may hold brackets.
        Text(cell)
        for cell in (
            key.id,
            key.name,
            iso8601(key.created_at)[:10],
            _of(usage.queued, key.max_queued),
            _of(usage.running, key.max_running),
            _of(usage.storage_bytes, key.max_storage_bytes, show_size),
            "revoked" if revoked else "open",
        )
    ]


def _of(used: int, limit: int | None, show: Callable[[int], Any] = str) -> str:
    return str(show(used)) if limit is None else f"{show(used)} of {show(limit)}"


def _shown(limit: int | None, show: Callable[[int], Any] = str) -> str:
    return NO_LIMIT if limit is None else str(show(limit))
