"""`reelsmith`: the service's command line."""

import time
from pathlib import Path
from typing import Annotated

import typer

from app.client import commands
from app.keys.commands import keys
from app.keys.opening import NoKey, require_key_at_start
from app.settings import Settings
from app.webhooks.commands import webhooks

main = typer.Typer(
    name="reelsmith",
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

    _require_key(Settings())
    try:
        with running(Settings()) as service:
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
    from app.gateway import create_app

    settings = Settings()
    _require_key(settings)
    server.run(create_app(settings), settings)


@main.command()
def migrate(
    to: Annotated[
        str | None, typer.Option(help="back to this revision; what it has no place for is dropped")
    ] = None,
) -> None:
    """Bring the database to this version's tables, or back to an older version's."""
    from app.db.migrate import downgrade, upgrade

    if to is not None:
        downgrade(Settings().database_url, to)
        typer.echo(f"the database is at {to}")
        return
    upgrade(Settings().database_url)
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
