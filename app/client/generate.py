"""`reelsmith generate`: a clip, LoRAs and a prompt become a video."""

import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.client import body as bodies
from app.client import run
from app.client.body import Location
from app.client.download import Target
from app.client.errors import Refused, RequestFailed
from app.client.service import Handle, Service
from app.client.show import display
from app.client.text import clean, size
from app.modes.base import Training

MODE: Final = "outpaint/lora"
SOURCE: Final[Location] = ("video_url",)
_REQUEST: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Generate:
    """The options of `reelsmith generate`."""

    source: str
    loras: Sequence[str]
    prompt: str | None = None
    mode: str = MODE
    input: Path | None = None
    fields: Sequence[str] = ()
    wait: bool = True
    download: Path | None = None
    webhook: str | None = None
    priority: str | None = None
    check: bool = False
    json: bool = False


def generate(service: Service, asked: Generate) -> int:
    """Upload what is here, submit, follow, download."""
    if isinstance(bodies.known_mode(asked.mode), Training):
        raise Refused(
            f"{asked.mode} trains a LoRA on many clips; generate makes a video of one. Run",
            f"reelsmith submit {asked.mode} CLIPS",
        )
    if asked.download is not None and not asked.wait:
        raise Refused("--download needs --wait; or run `reelsmith result ID --download DIR` later")
    target = Target(asked.download, new=True) if asked.download is not None else None
    mode = f"{asked.mode.strip('/')}/{run.CHECK_ROUTE}" if asked.check else asked.mode
    options = {"webhook": asked.webhook, "priority": asked.priority}
    body = body_of(service, asked)
    files = local_files(body)
    with display() as shown:
        run.warn_of_fields(asked.mode, body, shown)
        with run.says_what_is_wrong(asked.mode, check=asked.check):
            if files:
                bodies.ask_first(service, mode, body, list(files), **options)
            urls = {where: run.send(service, path, shown) for where, path in files.items()}
            handle, answer = service.submit(
                mode, bodies.replaced(body, urls), **options, idempotency_key=str(uuid.uuid4())
            )
        shown.say(f"request {handle.request_id}, {answer['queue_position']} before it")
        if target is not None:
            target.claim(handle)
        if asked.wait:
            run.watch(service, handle, shown)
    if not asked.wait:
        run.out(json.dumps(answer, indent=2) if asked.json else handle.request_id)
        return 0
    if asked.check:
        return show_report(service, handle, as_json=asked.json)
    return run.result(service, handle, target, as_json=asked.json)


def body_of(service: Service, asked: Generate) -> dict[str, Any]:
    """The request, files of this machine still by their names. Raises `Refused`."""
    body = bodies.with_fields(bodies.read_input(asked.input), asked.fields)
    body["video_url"] = asked.source
    if asked.prompt is not None:
        body["prompt"] = asked.prompt
    if asked.loras:
        if body.get("loras"):
            raise Refused("loras is given twice: in the fields, and as --lora")
        body["loras"] = [lora_of(service, text) for text in asked.loras]
    return body


def lora_of(service: Service, text: str) -> dict[str, Any]:
    """``FILE``, ``URL`` or the id of a training, with ``:scale`` behind it or not."""
    name, colon, scale = text.rpartition(":")
    entry: dict[str, Any]
    try:
        entry = {"path": name, "scale": float(scale)} if colon else {"path": text}
    except ValueError:
        entry = {"path": text}
    if not math.isfinite(entry.get("scale", 1.0)):
        raise Refused(f"--lora {text!r}: the scale behind the colon is no number; write 0.8")
    path = str(entry["path"])
    if _REQUEST.fullmatch(path) and not Path(path).is_file():
        entry["path"] = trained_lora(service, path)
    return entry


def trained_lora(service: Service, request_id: str) -> str:
    """The URL of the LoRA that a training made. Raises `Refused` or `RequestFailed`."""
    result, _ = service.result(service.find(request_id))
    file = result.get("lora_file")
    if not isinstance(file, Mapping):
        raise Refused(f"request {request_id} made no LoRA")
    return str(file["url"])


def local_files(body: Mapping[str, Any]) -> dict[Location, Path]:
    """Every file here that the body names. Raises `Refused` for one that is not there."""
    found = bodies.local_files(body)
    loras = body.get("loras")
    for index, lora in enumerate(loras if isinstance(loras, list) else ()):
        value = lora.get("path") if isinstance(lora, Mapping) else None
        if isinstance(value, str) and not bodies.is_url(value):
            path = Path(value).expanduser()
            if not path.is_file():
                raise Refused(
                    f"--lora {value!r} is neither a file here, nor a URL, nor the id of a training"
                )
            found[("loras", index, "path")] = path
    return found


def show_report(service: Service, handle: Handle, *, as_json: bool) -> int:
    """What source and LoRAs are; exit code 1 where one was refused."""
    report = service.report(handle)
    if report is None:
        service.result(handle)  # raises with the reason, where there is one
        raise RequestFailed(f"request {handle.request_id} left no report")
    if as_json:
        run.out(json.dumps(report, indent=2))
    else:
        for line in report_lines(report):
            run.out(line)
    return 0 if report["verdict"] == "ok" else 1


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report in words."""
    lines = []
    if (facts := report.get("facts")) is not None:
        sound = "with sound" if facts["audio"] else "silent"
        lines.append(
            f"source   {facts['width']}x{facts['height']}, {facts['num_frames']} frames, {sound}"
        )
    if (canvas := report.get("canvas")) is not None:
        lines.append(f"canvas   {canvas['width']}x{canvas['height']}")
    if (source := report.get("source")) is not None:
        place = source["placement"]
        lines.append(
            f"kept     {place['width']}x{place['height']} at {place['left']},{place['top']}, "
            f"{source['num_frames']} frames"
        )
        lines += [f"         {note}" for note in source["notes"]]
    for lora in report["loras"]:
        lines.append(f"lora     {lora['name']}: {lora['description']} ({size(lora['size_bytes'])})")
    if report["problem"]:
        lines.append(f"refused: {report['problem']['message']}")
    return [clean(line) for line in lines]
