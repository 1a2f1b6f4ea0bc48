"""What the pages about one request need, gathered from the API."""

import asyncio
import re
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from app.console.api import Api, ApiError
from app.requests.ids import is_id
from app.storage.signing import FILES_PATH

LOG_LINES: Final = 300
"""Lines that come with the page; its script loads the others as they are scrolled to."""
LORA_FIELD: Final = "lora_file"
MAX_LORAS: Final = 50
_GRANT: Final = re.compile(rf"^{FILES_PATH}[0-9]{{1,12}}-[A-Za-z0-9_-]+/")


async def whole(api: Api, request_id: str) -> dict[str, Any]:
    """The page as it is at first; what moves, its scripts follow."""
    found = await found_at(api, request_id)
    base = f"/requests/{found['request_id']}"
    more, log = await asyncio.gather(
        state(api, request_id, found), api.get(f"{base}/log", {"limit": LOG_LINES})
    )
    return {
        **more,
        **await files(api, request_id, found),
        "log": log,
        "has_curve": has_curve(found),
        "live": {
            "id": found["request_id"],
            "base": base,
            "cancel": f"/{_app(found)}/requests/{found['request_id']}/cancel",
            "standing": found["standing"],
            "now": {name: found[name] for name in ("status", "stage", "progress")},
            "trains": found["purpose"] == "train" and "number_of_steps" in found["input"],
            "log": log,
            "steps": found["input"].get("number_of_steps"),
            "previews": [_preview(event) for event in more["previews"]],
            "submit": found["mode"],
            "input": found["input"],
        },
    }


def has_curve(found: Any) -> bool:
    """Trainings have one, but for those that ended before their first step."""
    trains = found["purpose"] == "train" and "number_of_steps" in found["input"]
    began = "step" in (found["progress"] or {}) or found["standing"] == "succeeded"
    return trains and (began or found["status"] != "COMPLETED")


async def state(api: Api, request_id: str, found: Any = None) -> dict[str, Any]:
    """The timeline and where it stands."""
    found = found or await found_at(api, request_id)
    kinds = ["stage", "preview", "checkpoint", "trained"]
    events = await api.get(f"/requests/{found['request_id']}/events", {"kind": kinds})
    return {
        "found": found,
        "stages": stages(events["events"], found),
        "previews": [event for event in events["events"] if event["kind"] == "preview"],
        "trained": next((e["data"] for e in events["events"] if e["kind"] == "trained"), None),
        "checkpoints": [e["data"]["step"] for e in events["events"] if e["kind"] == "checkpoint"],
    }


def stages(events: list[Any], found: Any) -> list[dict[str, Any]]:
    """Each stage once, in the order of their first beginnings, with its seconds so far."""
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["kind"] != "stage":
            continue
        data = event["data"]
        row = rows.setdefault(data["name"], {"name": data["name"], "seconds": 0.0, "open": False})
        row["open"] = data["state"] == "start"
        row["seconds"] += data.get("seconds") or 0.0
    if found["status"] == "COMPLETED":
        for row in rows.values():
            row["open"] = False
    return list(rows.values())


async def files(api: Api, request_id: str, found: Any = None) -> dict[str, Any]:
    """What came of it: files, the error, the report's summary."""
    found = found or await found_at(api, request_id)
    result: Any = None
    if found["status"] == "COMPLETED":
        _, result = await api.result(f"/{_app(found)}/requests/{found['request_id']}")
    return {
        "found": found,
        "result": result,
        "files": files_of(result) if found["standing"] == "succeeded" else [],
        "report": await _report(api, found),
    }


def files_of(result: Any) -> list[dict[str, Any]]:
    """Every file of a result, with the name of its field."""
    if not isinstance(result, dict):
        return []
    named = result.items()
    return [
        {"field": name, **value}
        for name, value in named
        if isinstance(value, dict) and {"url", "file_name", "file_size"} <= value.keys()
    ]


async def report(api: Api, request_id: str) -> dict[str, Any]:
    """The dataset report with what its samples look like."""
    found = await found_at(api, request_id)
    made = await _report(api, found)
    if made is None:
        raise ApiError(404, "This request has no dataset report (yet).")
    samples = await api.get(f"/requests/{found['request_id']}/samples")
    looks = {sample["id"]: sample for sample in samples["samples"]}
    return {"found": found, "report": made, "looks": looks}


async def compared(api: Api, request_id: str) -> dict[str, Any]:
    """One column of a comparison."""
    found = await found_at(api, request_id)
    events = await api.get(f"/requests/{found['request_id']}/events", {"kind": ["preview"]})
    return {"found": found, "previews": [_preview(event) for event in events["events"]]}


def differences(inputs: list[dict[str, Any]]) -> list[tuple[str, list[Any], bool]]:
    """(field, its value in each, whether they differ), the differing ones first."""
    names = list(dict.fromkeys(name for input in inputs for name in input))
    rows = []
    for name in names:
        values = [input.get(name) for input in inputs]
        files = [unsigned(value) for value in values]
        rows.append((name, values, any(file != files[0] for file in files)))
    return sorted(rows, key=lambda row: not row[2])


def unsigned(value: Any) -> Any:
    """``value`` with the URLs of this store as the files that they name: a grant and S3's signature
    are left out, and differ each time that the same file is signed.

    >>> unsigned("http://host/files/1790000000-c2ln/uploads/a.zip")
    'http://host/files/uploads/a.zip'
    """
    if isinstance(value, dict):
        return {name: unsigned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [unsigned(item) for item in value]
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        return value
    url = urlsplit(value)
    query = [part for part in parse_qsl(url.query) if not part[0].lower().startswith("x-amz-")]
    path = _GRANT.sub(FILES_PATH, url.path, count=1)
    return urlunsplit(url._replace(path=path, query=urlencode(query)))


async def own_loras(api: Api) -> list[dict[str, Any]]:
    """The newest finished trainings with the URL of their LoRA, for a form to pick from."""
    page = await api.get(
        "/requests", {"standing": "succeeded", "purpose": "train", "limit": MAX_LORAS}
    )
    results = await asyncio.gather(
        *(api.result(f"/{_app(one)}/requests/{one['request_id']}") for one in page["requests"])
    )
    return [
        {**one, "url": body[LORA_FIELD]["url"]}
        for one, (status, body) in zip(page["requests"], results, strict=True)
        if status == 200 and isinstance(body, dict) and LORA_FIELD in body
    ]


async def found_at(api: Api, request_id: str) -> Any:
    """What the API says of one's own request. Raises `ApiError`."""
    if not is_id(request_id):
        # "..", for one, would lead to another route.
        raise ApiError(404, "This is no request's id.")
    return await api.get(f"/requests/{request_id}")


async def _report(api: Api, found: Any) -> Any:
    try:
        return await api.get(f"/{_app(found)}/requests/{found['request_id']}/report")
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def _app(found: Any) -> str:
    return "/".join(found["endpoint"].split("/")[:2])


def _preview(event: Any) -> dict[str, Any]:
    data = event["data"]
    return {
        "step": data["step"],
        "index": data["index"],
        "prompt": data["prompt"],
        "url": (data.get("file") or {}).get("url"),
    }
