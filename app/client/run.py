"""What the commands do, one function each; they return the exit code or raise `ClientError`."""

import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from app import modes
from app.client import body as bodies
from app.client.download import Target, files_of, is_inline
from app.client.errors import ClientError, Refused, RequestFailed, Unreachable
from app.client.folder import Contents, look, names_in_folder, names_in_zip, zipped
from app.client.service import Handle, Service
from app.client.show import Shown, display, headline, log_line, preview_url
from app.client.text import clean, size
from app.client.upload import upload
from app.client.watch import LogLine, Update, follow, updates_of
from app.modes.base import Generation

CHECK_ROUTE: Final = "check"
"""``POST /{mode}/check`` takes what ``POST /{mode}`` takes and ends after the preparation."""


def out(line: str) -> None:
    """A result, on stdout; everything else goes to stderr."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Submit:
    """The options of `reelsmith submit`."""

    mode: str
    source: str
    input: Path | None = None
    fields: Sequence[str] = ()
    prompts: Sequence[str] = ()
    videos: Sequence[str] = ()
    masks: Sequence[str] = ()
    wait: bool = True
    download: Path | None = None
    webhook: str | None = None
    priority: str | None = None
    check: bool = False
    json: bool = False


def submit(service: Service, asked: Submit) -> int:
    """Zip, upload, submit, follow, download."""
    if isinstance(bodies.known_mode(asked.mode), Generation):
        raise Refused(
            f"{asked.mode} makes a video of one clip; submit trains on many. Run",
            "reelsmith generate CLIP --lora LORA --prompt PROMPT",
        )
    if asked.download is not None and not asked.wait:
        raise Refused("--download needs --wait; or run `reelsmith result ID --download DIR` later")
    target = Target(asked.download, new=True) if asked.download is not None else None
    body = bodies.with_fields(bodies.read_input(asked.input), asked.fields)
    body = bodies.with_previews(body, asked.prompts, asked.videos, asked.masks)
    body = bodies.without(body, [(bodies.ARCHIVE_FIELD,)])
    mode = f"{asked.mode.strip('/')}/{CHECK_ROUTE}" if asked.check else asked.mode
    options = {"webhook": asked.webhook, "priority": asked.priority}
    files = bodies.local_files(body)

    def preview(event: Mapping[str, Any]) -> str:
        try:
            return str(target.preview(service, event)) if target else preview_url(event)
        except ClientError:
            return preview_url(event)  # the training goes on, and so does the watching

    with display(preview) as shown:
        warn_of_fields(asked.mode, body, shown)
        archive = look_at(asked.source, bodies.dataset_rule(asked.mode, body), shown)
        with says_what_is_wrong(asked.mode, check=asked.check):
            if archive is not None:
                places = [(bodies.ARCHIVE_FIELD,), *files]
                bodies.ask_first(service, mode, body, places, **options)
            urls = {where: send(service, path, shown) for where, path in files.items()}
            body = bodies.replaced(body, urls)
            body[bodies.ARCHIVE_FIELD] = archive(service) if archive else asked.source
            handle, answer = service.submit(
                mode, body, **options, idempotency_key=str(uuid.uuid4())
            )
        shown.say(f"request {handle.request_id}, {answer['queue_position']} before it")
        if target is not None:
            target.claim(handle)
        if asked.wait:
            watch(service, handle, shown)
    if not asked.wait:
        out(json.dumps(answer, indent=2) if asked.json else handle.request_id)
        return 0
    if asked.check:
        return show_report(service, handle, as_json=asked.json)
    return result(service, handle, target, as_json=asked.json)


def warn_of_fields(mode: str, body: Mapping[str, Any], shown: Shown) -> None:
    """Of those that change nothing."""
    for field in bodies.unknown_fields(mode, body):
        shown.say(f"warning: {mode} has no field {field!r}; it changes nothing")


Sender = Callable[[Service], str]


def look_at(source: str, rule: Any, shown: Shown) -> Sender | None:
    """Say what is in the folder or zip; returns what uploads it, None for a URL."""
    if bodies.is_url(source):
        return None
    path = Path(source).expanduser()
    if path.is_dir():
        names = names_in_folder(path)
    elif path.is_file():
        names = names_in_zip(path)
    else:
        raise Refused(f"there is no folder, zip or URL {source!r}")
    contents = look(names, rule)
    describe(path, contents, shown)
    if path.is_file():
        return lambda service: send(service, path, shown)

    def zip_and_send(service: Service) -> str:
        name = f"{path.resolve().name or 'clips'}.zip"
        with zipped(path, names, partial(shown.transfer, "zipping")) as archive:
            return send(service, archive, shown, name=name, source=path)

    return zip_and_send


def describe(path: Path, contents: Contents, shown: Shown) -> None:
    """Counts and warnings. Raises `Refused` when there is nothing to train on."""
    if not contents.num_videos + contents.num_images:
        raise Refused(f"{path} has nothing to train on", *contents.warnings)
    shown.say(f"{path}: {contents.summary()}")
    for warning in contents.warnings:
        shown.say(f"warning: {warning}")


def send(
    service: Service,
    path: Path,
    shown: Shown,
    *,
    name: str | None = None,
    source: Path | None = None,
) -> str:
    """Upload with progress; returns the URL."""
    on_bytes = partial(shown.transfer, f"uploading {name or path.name}")
    return upload(service, path, name=name, source=source, on_bytes=on_bytes)


@contextmanager
def says_what_is_wrong(mode: str, *, check: bool) -> Iterator[None]:
    """A heading for the service's refusals of a submit."""
    try:
        yield
    except Refused as error:
        if error.status == 422:
            raise Refused("the service refuses the input:", *error.lines, status=422) from None
        if error.status in (404, 405) and check:
            raise Refused(
                f"this service has no check for {mode}", *error.lines, status=404
            ) from None
        if error.status in (404, 405):
            known = ", ".join(one.path for one in modes.all())
            raise Refused(f"this service has no {mode}; it may have {known}", status=404) from None
        raise
    except Unreachable as error:
        raise Unreachable(
            *error.lines, "If the request was sent already, `reelsmith requests` shows it."
        ) from None


def watch(service: Service, handle: Handle, shown: Shown) -> Update:
    """Follow to the end. Ctrl-C stops the following, not the request."""
    try:
        return follow(service, handle, shown)
    except (KeyboardInterrupt, Unreachable):
        shown.say(f"request {handle.request_id} goes on without this command; to go on with it:")
        for command in ("logs ID --follow", "result ID --download DIR", "cancel ID"):
            shown.say(f"  reelsmith {command.replace('ID', handle.request_id)}")
        raise


def status(service: Service, request_id: str, *, as_json: bool = False) -> int:
    """One line about one request."""
    handle = service.find(request_id)
    found = service.status(handle)
    if as_json:
        out(json.dumps(found, indent=2))
        return 0
    update = next(updates_of(service, handle))
    out(f"{handle.request_id}  {handle.endpoint}  {headline(update)}")
    if found.get("error"):
        out(f"  {clean(found['error'])}")
    return 0


def logs(service: Service, request_id: str, *, keep_on: bool = False) -> int:
    """The log on stdout; with ``keep_on`` until the request has ended."""
    handle = service.find(request_id)
    if not keep_on:
        for line in service.status(handle, logs=True)["logs"] or ():
            out(log_line(LogLine(line["timestamp"], line["level"], line["message"])))
        return 0
    follow(service, handle, _LogOnly())
    return 0


class _LogOnly:
    """A display of log lines on stdout."""

    def update(self, update: Update) -> None:
        for line in update.lines:
            out(log_line(line))

    def say(self, line: str) -> None:
        sys.stderr.write(line + "\n")


def result_of(
    service: Service, request_id: str, *, download: Path | None = None, as_json: bool = False
) -> int:
    """The result of a request that has ended."""
    target = Target(download) if download is not None else None
    return result(service, service.find(request_id), target, as_json=as_json)


def result(service: Service, handle: Handle, target: Target | None, *, as_json: bool) -> int:
    """Print the result, and bring its files. Raises `RequestFailed`."""
    try:
        found, units = service.result(handle)
    except RequestFailed as error:
        if as_json:
            out(json.dumps({"request_id": handle.request_id, "error": error.lines[1:]}, indent=2))
        raise
    paths: dict[str, Path] = {}
    if target is not None:
        with display() as shown:
            paths = target.fetch(
                service,
                handle,
                found,
                lambda name, done, total: shown.transfer(f"downloading {name}", done, total),
            )
    if as_json:
        out(json.dumps(found, indent=2))
        return 0
    for field, path in paths.items():
        out(f"{field}: {path} ({size(path.stat().st_size)})")
    if not paths:
        for field, file in files_of(found):
            where = "in the reply" if is_inline(file) else file["url"]
            out(f"{field}: {where} ({size(file.get('file_size') or 0)})")
    out(f"billed: {units:g} units")
    return 0


def show_report(service: Service, handle: Handle, *, as_json: bool) -> int:
    """What became of every clip; exit code 1 for a dataset that was refused."""
    report = service.report(handle)
    if report is None:
        service.result(handle)  # raises with the reason, where there is one
        raise RequestFailed(f"request {handle.request_id} left no report")
    if as_json:
        out(json.dumps(report, indent=2))
    else:
        for line in report_lines(report):
            out(line)
    return 0 if report["verdict"] == "ok" else 1


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The dataset report in words."""
    totals = report["totals"]
    lines = [
        f"{totals['clips']} clips, {totals['used']} used, {totals['dropped']} dropped, "
        f"{totals['samples']} training samples"
    ]
    for clip in report["clips"]:
        if clip["dropped"]:
            lines.append(f"dropped  {clip['name']}: {clip['dropped']['message']}")
        else:
            number = len(clip["became"])
            lines.append(f"used     {clip['name']}: {number} sample{'s' * (number != 1)}")
        lines += [f"         warning: {warning}" for warning in clip["warnings"]]
    lines += [f"ignored  {entry['name']}: {entry['reason']}" for entry in report["ignored"]]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    if report["problem"]:
        lines.append(f"refused: {report['problem']['message']}")
    return [clean(line) for line in lines]


def cancel(service: Service, request_id: str) -> int:
    """Ask for the end of a request."""
    handle = service.find(request_id)
    service.cancel(handle)
    out(f"{handle.request_id}: cancellation requested")
    return 0


def wish(service: Service, request_id: str, name: Literal["save", "sample"]) -> int:
    """Ask a running training for a checkpoint or previews."""
    handle = service.find(request_id)
    service.wish(handle, name)
    out(f"{handle.request_id}: asked for; it is done after the current step")
    return 0


def requests(service: Service, limit: int, *, before: str | None, as_json: bool) -> int:
    """The key's newest requests, one per line."""
    page = service.list(limit, before)
    if as_json:
        out(json.dumps(page, indent=2))
        return 0
    for found in page["requests"]:
        update = Update(
            found["status"], None, found["stage"], found["progress"] or {}, (), (), found["error"]
        )
        where = "cancelled" if found["standing"] == "cancelled" else headline(update)
        out(
            f"{found['request_id']}  {found['created_at'][:16].replace('T', ' ')}  "
            f"{found['endpoint']}  {where}"
        )
    if not page["requests"]:
        sys.stderr.write("no requests yet\n")
    if page["before"]:
        sys.stderr.write(f"older ones: --before {page['before']}\n")
    return 0
