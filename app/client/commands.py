"""The commands for users of a service; what they do is in `run.py` and `doctor.py`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from app.client.service import Service

URL_VARIABLE = "REELSMITH_URL"
KEY_VARIABLES = ("REELSMITH_KEY", "FAL_KEY")

Host = Annotated[
    str | None,
    typer.Option(
        "--host", help=f"Where the service is; default: {URL_VARIABLE}, else 127.0.0.1:8000."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", help=f"File that holds the API key; default: {' or '.join(KEY_VARIABLES)}."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id.")]
Download = Annotated[
    Path | None,
    typer.Option("--download", metavar="DIR", help="Bring the files there: a new or empty folder."),
]


Priority = Annotated[
    # The service takes every other word for "normal", as fal does.
    Literal["normal", "low"] | None, typer.Option(help="Low: after everything that is normal.")
]


def register(main: typer.Typer) -> None:
    """Add all commands to ``main``."""
    commands = (submit, generate, status, logs, result, cancel, save, sample, requests, doctor)
    for command in commands:
        main.command()(command)


def submit(
    mode: Annotated[str, typer.Argument(help="Such as t2v, or an endpoint's full id.")],
    source: Annotated[
        str, typer.Argument(metavar="CLIPS", help="A folder of clips, a zip, or a zip's URL.")
    ],
    field: Annotated[
        list[str] | None,
        typer.Option("-F", "--field", metavar="NAME=VALUE", help="A field; JSON, else text."),
    ] = None,
    input: Annotated[
        Path | None, typer.Option(help="JSON file with fields; -F goes before it.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A preview's prompt.")] = None,
    video: Annotated[
        list[str] | None, typer.Option(help="The preview's video, a file or URL; one per prompt.")
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="The preview's mask, a file or URL; one per prompt.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
    download: Download = None,
    webhook: Annotated[str | None, typer.Option(help="URL that is told of the end.")] = None,
    priority: Priority = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only prepare the clips, and say what becomes of each.")
    ] = False,
    json: Json = False,
    host: Host = None,
    key_file: KeyFile = None,
) -> None:
    """Train on a folder of clips: zip, upload, submit, follow, download."""
    from app.client import run

    asked = run.Submit(
        mode=mode,
        source=source,
        input=input,
        fields=field or (),
        prompts=prompt or (),
        videos=video or (),
        masks=mask or (),
        wait=wait,
        download=download,
        webhook=webhook,
        priority=priority,
        check=check,
        json=json,
    )
    _with_service(host, key_file, lambda service: run.submit(service, asked))


def generate(
    source: Annotated[str, typer.Argument(metavar="CLIP", help="A video: a file or a URL.")],
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LORA[:SCALE]", help="A .safetensors file, its URL, or the id of a training."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the video shows.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("-F", "--field", metavar="NAME=VALUE", help="A field; JSON, else text."),
    ] = None,
    input: Annotated[
        Path | None, typer.Option(help="JSON file with fields; -F goes before it.")
    ] = None,
    mode: Annotated[str, typer.Option(help="Path or full id of the endpoint.")] = "outpaint/lora",
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
    download: Download = None,
    webhook: Annotated[str | None, typer.Option(help="URL that is told of the end.")] = None,
    priority: Priority = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only fetch clip and LoRAs, and say what they are.")
    ] = False,
    json: Json = False,
    host: Host = None,
    key_file: KeyFile = None,
) -> None:
    """Make a video of a clip with LoRAs: upload, submit, follow, download."""
    from app.client import generate as generating

    asked = generating.Generate(
        source=source,
        loras=lora or (),
        prompt=prompt,
        mode=mode,
        input=input,
        fields=field or (),
        wait=wait,
        download=download,
        webhook=webhook,
        priority=priority,
        check=check,
        json=json,
    )
    _with_service(host, key_file, lambda service: generating.generate(service, asked))


def status(
    request_id: RequestId, json: Json = False, host: Host = None, key_file: KeyFile = None
) -> None:
    """Say where a request is."""
    from app.client import run

    _with_service(host, key_file, lambda service: run.status(service, request_id, as_json=json))


def logs(
    request_id: RequestId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until it has ended.")
    ] = False,
    host: Host = None,
    key_file: KeyFile = None,
) -> None:
    """Print a request's log."""
    from app.client import run

    _with_service(host, key_file, lambda service: run.logs(service, request_id, keep_on=follow))


def result(
    request_id: RequestId,
    download: Download = None,
    json: Json = False,
    host: Host = None,
    key_file: KeyFile = None,
) -> None:
    """Print a result, and bring its files. What a broken download left is gone on with."""
    from app.client import run

    _with_service(
        host,
        key_file,
        lambda service: run.result_of(service, request_id, download=download, as_json=json),
    )


def cancel(request_id: RequestId, host: Host = None, key_file: KeyFile = None) -> None:
    """Cancel a request, queued or running."""
    from app.client import run

    _with_service(host, key_file, lambda service: run.cancel(service, request_id))


def save(request_id: RequestId, host: Host = None, key_file: KeyFile = None) -> None:
    """Have a running training save a checkpoint now."""
    from app.client import run

    _with_service(host, key_file, lambda service: run.wish(service, request_id, "save"))


def sample(request_id: RequestId, host: Host = None, key_file: KeyFile = None) -> None:
    """Have a running training make previews now."""
    from app.client import run

    _with_service(host, key_file, lambda service: run.wish(service, request_id, "sample"))


def requests(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="Only ones older than this.")
    ] = None,
    json: Json = False,
    host: Host = None,
    key_file: KeyFile = None,
) -> None:
    """List your newest requests."""
    from app.client import run

    _with_service(
        host,
        key_file,
        lambda service: run.requests(service, limit, before=before, as_json=json),
    )


def doctor(host: Host = None, key_file: KeyFile = None) -> None:
    """Check this machine and the service: each line says ok, warn or fail, and what to do."""
    from app.client import doctor as checks
    from app.client.errors import ClientError

    try:
        url, key = _url(host), _key(key_file)
        code = checks.run(url, key, expected=bool(host or os.environ.get(URL_VARIABLE)))
    except ClientError as error:
        _end(error)
    raise typer.Exit(code)


def _with_service(
    host: str | None, key_file: Path | None, command: "Callable[[Service], int]"
) -> None:
    """Run ``command`` and leave with its exit code."""
    from app.client.errors import INTERRUPTED, ClientError
    from app.client.service import Service

    try:
        with Service(_url(host), _key(key_file)) as service:
            code = command(service)
    except ClientError as error:
        _end(error)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


def _end(error: Exception) -> None:
    from app.client.errors import ClientError

    assert isinstance(error, ClientError)
    sys.stderr.write(f"{error}\n")
    raise typer.Exit(error.exit_code) from None


def _url(host: str | None) -> str:
    from app.client.service import DEFAULT_URL

    return host or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def _key(key_file: Path | None) -> str | None:
    """The key, from a file or the environment: on a command line, every user could read it."""
    from app.client.errors import Refused

    if key_file is None:
        found = next((value for name in KEY_VARIABLES if (value := os.environ.get(name))), None)
    else:
        try:
            found = key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"the key file {key_file} can't be read: {error}") from error
        if not found.strip():
            raise Refused(f"the key file {key_file} is empty")
    key = found.strip() if found else None
    if key and not (key.isascii() and key.isprintable()):
        raise Refused("the API key has characters that no key has")
    return key
