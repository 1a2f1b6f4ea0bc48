"""`reelsmith`: the service's command line."""

import errno
import ssl
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from typer.core import TyperGroup

from app.client import commands
from app.client.errors import ClientError, Refused, Unreachable
from app.keys.commands import keys
from app.keys.opening import NoKey, require_key_at_start
from app.settings import Settings, problems_of
from app.webhooks.commands import webhooks


class _Lines(TyperGroup):
    """Says in a line what the machine or its settings lack; a traceback is for our own mistakes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            if error.title != Settings.__name__:
                raise
            _end(Refused, *problems_of(error))
        except DBAPIError as error:
            said = str(error.orig).strip().splitlines()
            _end(Unreachable, f"REELSMITH_DATABASE_URL: {'; '.join(map(str.strip, said))}")
        except CommandError as error:
            _end(Refused, f"the database can't be migrated: {error}")
        except ssl.SSLError as error:
            why = "no certificate with its key, in PEM and without a passphrase"
            _end(Refused, f"REELSMITH_TLS_CERT, REELSMITH_TLS_KEY: {why} ({error.reason})")
        except OSError as error:
            # EPIPE is typer's: the reader of a pipe has gone.
            if error.errno == errno.EPIPE or not (error.filename or error.errno == errno.ENOSPC):
                raise
            where = f"{error.filename}: " if error.filename else ""
            _end(Refused, f"{where}{error.strerror}")


def _end(kind: type[ClientError], *lines: str) -> NoReturn:
    typer.echo("\n".join(lines), err=True)
    raise typer.Exit(kind.exit_code) from None


main = typer.Typer(
    name="reelsmith",
    cls=_Lines,
    help="Train LoRAs for LTX-2.3 on your own GPUs, behind fal's API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
main.add_typer(keys, name="keys")
main.add_typer(webhooks)


@main.command()
def up() -> None:
    """Start broker, gateway and workers on this machine; Ctrl-C stops them."""
    from app.dev import NotStarted, running
    from app.machine import unfit

    settings = Settings()
    _require_key(settings)
    if lacking := unfit(settings):
        typer.echo(f"{lacking.name}: {lacking.says}\n-> {lacking.advice}", err=True)
        raise typer.Exit(1)
    try:
        with running(settings) as service:
            typer.echo("Ctrl-C stops it.")
            try:
                while True:
                    time.sleep(1.0)
                    service.watch()
            except KeyboardInterrupt:
                typer.echo("stopping; a running training saves a checkpoint first")
    except NotStarted as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@main.command()
def serve() -> None:
    """Run the gateway alone (the workers run elsewhere)."""
    from app import server
    from app.db.migrate import upgrade
    from app.gateway import create_app

    settings = Settings()
    _require_key(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)  # the app does it too; here its failure is one line
    server.run(create_app(settings), settings)


@main.command()
def migrate(
    to: Annotated[
        str | None, typer.Option(help="back to this revision; what it has no place for is dropped")
    ] = None,
) -> None:
    """Bring the database to this version's tables, or back to an older version's."""
    from app.db.migrate import downgrade, upgrade

    settings = Settings()
    if to is not None:
        downgrade(settings.database_url, to)
        typer.echo(f"the database is at {to}")
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    typer.echo("the database is up to date")


@main.command()
def demo(
    out: Annotated[Path, typer.Option(help="where the results go; emptied first")] = Path(
        "data/demo"
    ),
) -> None:
    """Train a LoRA on real clips with the tiny model, from a zip to a reel."""
    from app.demo import run

    raise typer.Exit(run(out))


commands.register(main)


def _require_key(settings: Settings) -> None:
    try:
        require_key_at_start(settings)
    except NoKey as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    main()
